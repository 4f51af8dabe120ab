//! From a configured connection to a client that signs, with what keeps its keys fresh.

use std::sync::Arc;

use crate::config::ConnectionConfig;
use crate::credentials::{CredentialError, Keeper};
use crate::oss::{self, Client};

/// Why there is no client, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("{path}: cannot be read: {error}; see --ca-file")]
    Authorities { path: String, error: std::io::Error },
    #[error("{0}")]
    Client(#[from] oss::Error),
}

/// Reads the keys and makes a client; sends it nothing yet.
///
/// # Errors
/// There are no keys, or the options cannot be used.
pub async fn connect(connection: &ConnectionConfig) -> Result<(Client, Arc<Keeper>), ConnectError> {
    let keeper = Keeper::open(connection.credentials.clone()).await?;
    let authorities = match &connection.ca_file {
        None => Vec::new(),
        Some(path) => std::fs::read(path)
            .map_err(|error| ConnectError::Authorities { path: path.display().to_string(), error })?,
    };
    let client = Client::trusting(connection.client_options(keeper.current()), &authorities)?;
    client.set_credential_source(keeper.clone());
    Ok((client, keeper))
}

/// Hands new keys on to the client, for ever.
pub(super) async fn keep_fresh(keeper: Arc<Keeper>, client: Client) {
    let set = |credentials| {
        if let Err(error) = client.set_credentials(credentials) {
            log::warn!("new credentials cannot be used: {error}");
        }
    };
    keeper.run(set).await;
}
