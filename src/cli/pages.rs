//! `ossfuse man` and `ossfuse completions`: made from the definition of the commands, as their help is.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;

use super::flags::CommonFlags;
use super::{Cli, Error, print};

/// Write the man pages to a folder.
#[derive(Debug, clap::Args)]
#[command(after_help = MAN_EXAMPLE, after_long_help = MAN_EXAMPLE)]
pub(super) struct ManArgs {
    /// Made if missing; one page a command
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    _common: CommonFlags,
}

const MAN_EXAMPLE: &str = "Example:
  ossfuse man /usr/local/share/man/man1";

/// Print what makes a shell complete the command line.
#[derive(Debug, clap::Args)]
#[command(after_help = COMPLETIONS_EXAMPLE, after_long_help = COMPLETIONS_EXAMPLE)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
    #[command(flatten)]
    _common: CommonFlags,
}

const COMPLETIONS_EXAMPLE: &str = "Examples:
  ossfuse completions bash > /etc/bash_completion.d/ossfuse
  ossfuse completions zsh > ~/.zfunc/_ossfuse
  ossfuse completions fish > ~/.config/fish/completions/ossfuse.fish";

/// Writes the pages.
///
/// # Errors
/// The folder cannot be made or written.
pub(super) fn man(args: &ManArgs) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::new(args.dir.display(), error, "name a folder that you can write");
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    // `ossfuse help` is no page of its own.
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    write_pages(&root, "ossfuse", &args.dir).map_err(failed)
}

fn write_pages(command: &clap::Command, name: &str, dir: &Path) -> std::io::Result<()> {
    // The page's own name: `clap_mangen` takes it from the command.
    let own: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let examples = command.get_after_help().map(|text| examples(&text.to_string())).unwrap_or_default();
    // Its own section of this text would be filled like prose.
    let plain = command.clone().name(own).after_help(None::<&str>).after_long_help(None::<&str>);
    let mut page = Vec::new();
    clap_mangen::Man::new(plain).render(&mut page)?;
    page.extend_from_slice(examples.as_bytes());
    std::fs::write(dir.join(format!("{name}.1")), page)?;
    for sub in command.get_subcommands() {
        write_pages(sub, &format!("{name}-{}", sub.get_name()), dir)?;
    }
    Ok(())
}

/// What stands behind the options of a command's help, as a section of its page: commands keep their lines.
fn examples(text: &str) -> String {
    let mut section = ".SH EXAMPLES\n".to_owned();
    for paragraph in text.split("\n\n") {
        let lines: Vec<&str> = paragraph.lines().filter(|line| !matches!(*line, "Example:" | "Examples:")).collect();
        let (before, after) =
            if lines.iter().all(|line| line.starts_with("  ")) { (".nf\n", ".fi\n") } else { ("", "") };
        section += ".PP\n";
        section += before;
        lines.iter().for_each(|line| section += &format!("\\&{}\n", roff(line.strip_prefix("  ").unwrap_or(line))));
        section += after;
    }
    section
}

/// Text that roff takes for nothing else.
fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// Prints the script.
///
/// # Errors
/// stdout is closed.
pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ossfuse", &mut script);
    print(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_keep_their_lines_on_a_page() {
        let text = "Examples:\n  ossfuse a --b\n  .c 'd\\'\n\nWhat they do\nis told.";
        let wanted = ".SH EXAMPLES\n.PP\n.nf\n\\&ossfuse a \\-\\-b\n\\&.c 'd\\e'\n.fi\n\
            .PP\n\\&What they do\n\\&is told.\n";
        assert_eq!(examples(text), wanted);
    }
}
