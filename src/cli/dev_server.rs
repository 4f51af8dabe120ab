//! `ossfuse dev-server`: the service on this machine, for trying and testing.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use super::flags::CommonFlags;
use super::{Error, log_warnings, print};
use crate::base::units::parse_size;
use crate::config::{Problem, is_bucket};
use crate::devserver::{Options, Server};

/// Run an OSS-compatible server on this machine, for trying and testing.
///
/// It keeps its data in a folder and checks signatures as strictly as the service. Its first line on stdout is
/// `listening http://HOST:PORT` (https with --tls), the next is the command that mounts it. Ctrl-C stops it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    /// The folder that holds its data; made if missing
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The address to listen at; port 0 takes any that is free
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
    listen: SocketAddr,
    /// A bucket to make if missing; repeatable
    #[arg(long = "bucket", value_name = "NAME")]
    buckets: Vec<String>,
    /// The access key it accepts
    #[arg(long, value_name = "ID", default_value = "test-ak")]
    access_key_id: String,
    /// The secret of that key: a test secret, not one of yours
    #[arg(long, value_name = "SECRET", default_value = "test-sk")]
    access_key_secret: String,
    /// The region that V4 signatures must name
    #[arg(long, value_name = "ID", default_value = "cn-hangzhou")]
    region: String,
    /// The smallest part but the last of an upload
    #[arg(long, value_name = "SIZE", default_value = "100KiB", value_parser = parse_size)]
    min_part: u64,
    /// Speak TLS, with a certificate of its own making: tls-cert.pem in the data folder
    #[arg(long)]
    tls: bool,
    /// Serve clients of S3 too, in path style, whatever their signatures
    #[arg(long)]
    s3: bool,
    #[command(flatten)]
    _common: CommonFlags,
}

const EXAMPLE: &str = "Example:
  ossfuse dev-server --data ~/oss-data --listen 127.0.0.1:9000 \\
      --bucket my-bucket";

/// Runs the server until SIGINT or SIGTERM.
///
/// # Errors
/// Its address or its data cannot be had.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    log_warnings();
    let failed = |error: std::io::Error| Error::new("dev-server", error, "see --data and --listen");
    if let Some(bad) = args.buckets.iter().find(|name| !is_bucket(name)) {
        let mend = "take 3 to 63 of a-z, 0-9 and -, and no - at its ends";
        return Err(Problem::new(format!("--bucket {bad}"), "no bucket can have this name", mend).usage().into());
    }
    let runtime = tokio::runtime::Runtime::new().map_err(failed)?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let server = Server::bind(args.options()).await.map_err(failed)?;
        print(&format!("listening {}\n{}\n", server.url(), server.mount_line()))?;
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        server.run(stop).await.map_err(failed)
    })
}

/// Takes names too, such as `localhost:9000`.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| format!("`{text}` is no HOST:PORT; write it like 127.0.0.1:9000"))
}

impl Args {
    fn options(&self) -> Options {
        Options {
            data: self.data.clone(),
            listen: self.listen,
            buckets: self.buckets.clone(),
            access_key_id: self.access_key_id.clone(),
            access_key_secret: self.access_key_secret.clone(),
            region: self.region.clone(),
            min_part: self.min_part,
            tls: self.tls,
            s3: self.s3,
        }
    }
}
