//! The command line as people meet it: help and its topics, suggestions, completions, man pages, the doctor.

mod common;

use common::{Daemon, command, run, stderr};
use std::process::{Command, Output};

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn help_is_short_all_of_it_is_asked_for_and_topics_have_an_example() {
    let short = stdout(&run(&["serve", "--help"]));
    let all = stdout(&run(&["serve", "--help-all"]));
    assert!(
        short.contains("--cache <") && !short.contains("--cache-file") && short.contains("mixd serve --help-all"),
        "{short}"
    );
    assert!(
        all.contains("--cache-file")
            && all.contains("Object stores:")
            && all.lines().count() > 2 * short.lines().count(),
        "{all}"
    );
    let topic = stdout(&run(&["help", "memory"]));
    assert!(topic.contains("For example:\n  mixd serve ") && topic.contains("--cache-file"), "{topic}");
    assert_eq!(stdout(&run(&["help", "serve"])), short);
    assert_eq!(stdout(&run(&["help"])), stdout(&run(&["--help"])));
    // Nothing else is run where a command is misspelled.
    let wrong = run(&["help", "memry"]);
    assert!(!wrong.status.success() && stderr(&wrong).contains("did you mean `memory`?"), "{}", stderr(&wrong));
    let wrong = run(&["srve"]);
    assert!(wrong.status.code() == Some(2) && stderr(&wrong).contains("'serve'"), "{}", stderr(&wrong));
}

#[test]
fn a_key_that_no_command_has_is_refused_with_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("mixd.toml");
    std::fs::write(&config, "data = \"/d\"\ncache_fil = \"/c\"\n").unwrap();
    let refused = run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("no command has an option `cache_fil`, did you mean `cache-file`?"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn completions_complete_and_man_pages_name_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    stdout(&run(&["generate", "--out", out]));
    // As bash asks for it after a Tab.
    let script = "source \"$0/bash-completion/completions/mixd\"; COMP_WORDS=(mixd serve --cache); COMP_CWORD=2; _mixd mixd --cache serve; echo \"${COMPREPLY[@]}\"";
    let completed = stdout(&Command::new("bash").args(["-c", script, out]).output().unwrap());
    assert_eq!(completed.split_whitespace().collect::<Vec<_>>(), ["--cache", "--cache-file"]);
    let commands = stdout(&run(&["help"]));
    let commands = commands.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<&str> =
        commands.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"serve") && names.contains(&"doctor"), "{names:?}");
    for name in names {
        let page = std::fs::read_to_string(dir.path().join(format!("man/man1/mixd-{name}.1"))).unwrap();
        assert!(page.starts_with(".ie") && page.contains(".SH NAME"), "{name}: {page}");
    }
    for file in ["zsh/site-functions/_mixd", "fish/vendor_completions.d/mixd.fish"] {
        assert!(std::fs::read_to_string(dir.path().join(file)).unwrap().contains("cache-file"), "{file}");
    }
}

#[test]
fn the_doctor_tells_what_is_short_and_fails_where_nothing_would_work() {
    let daemon = Daemon::start(&[]);
    let socket = daemon.socket();
    let socket = socket.to_str().unwrap();
    let healthy = stdout(&run(&["doctor", "--socket", socket]));
    for subject in [
        "processors",
        "instructions",
        "jpeg decoder",
        "memory",
        "shared memory",
        "files",
        "kernel",
        "page cache",
        "gpu",
        "daemon",
    ] {
        assert!(healthy.lines().any(|line| line[6..].starts_with(subject)), "{subject}: {healthy}");
    }
    assert!(healthy.contains(&format!("(pid {})", daemon.child.id())), "{healthy}");
    let findings: serde_json::Value =
        serde_json::from_str(&stdout(&run(&["doctor", "--json", "--socket", socket]))).unwrap();
    assert!(
        findings.as_array().unwrap().iter().all(|finding| (finding["remedy"] == "") == (finding["level"] == "ok")),
        "{findings}"
    );
    let few =
        command("sh").args(["-c", "ulimit -n 30 && exec \"$0\" doctor", env!("CARGO_BIN_EXE_mixd")]).output().unwrap();
    let text = String::from_utf8_lossy(&few.stdout);
    assert!(
        few.status.code() == Some(1) && text.contains("FAIL  files") && text.contains("→ raise `ulimit -Hn`"),
        "{text}"
    );
    assert!(stderr(&few).contains("checks failed"), "{}", stderr(&few));
    // One processor of this machine's several.
    let online = mixd::cpus::online();
    if online > 1 {
        let bound = command("taskset").args(["-c", "0", env!("CARGO_BIN_EXE_mixd"), "doctor"]).output().unwrap();
        assert!(stdout(&bound).contains(&format!("note  processors     1 of {online}\n")), "{}", stdout(&bound));
    }
}
