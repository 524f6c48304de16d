//! `mixd generate`: man pages, and completions for shells.

use super::help;
use crate::escape::escaped;
use anyhow::Context;
use clap::Args;
use clap_complete::Shell;
use std::path::{Path, PathBuf};

/// Write man pages, and completions for bash, zsh and fish, into folders below one: man/man1, bash-completion/completions, zsh/site-functions,
/// fish/vendor_completions.d.
#[derive(Debug, Args)]
pub struct Generate {
    /// The folder, such as ~/.local/share.
    #[arg(long, env = "MIXD_OUT")]
    out: PathBuf,
}

impl Generate {
    pub fn run(self) -> anyhow::Result<()> {
        write(&self.out).with_context(|| format!("cannot write below {}", escaped(&self.out)))
    }
}

fn write(out: &Path) -> std::io::Result<()> {
    let man = out.join("man/man1");
    std::fs::create_dir_all(&man)?;
    clap_mangen::generate_to(help::command(), man)?;
    let shells = [
        (Shell::Bash, "bash-completion/completions", "mixd"),
        (Shell::Zsh, "zsh/site-functions", "_mixd"),
        (Shell::Fish, "fish/vendor_completions.d", "mixd.fish"),
    ];
    for (shell, folder, file) in shells {
        let folder = out.join(folder);
        std::fs::create_dir_all(&folder)?;
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut help::command(), "mixd", &mut text);
        std::fs::write(folder.join(file), text)?;
    }
    Ok(())
}
