//! Where the example programs are, for tests that run them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The programs' directory, `target/PROFILE/examples`. They are built if they are missing or
/// older than their sources, as they may be under `cargo test --test programs`.
pub(crate) fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let test = std::env::current_exe().expect("this program");
        let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/NAME");
        let directory = profile.join("examples");
        let built = ["reactor_echo", "tcp_ok"].map(|name| modified(&directory.join(name)));
        if built.into_iter().min().flatten() < newest(Path::new(env!("CARGO_MANIFEST_DIR"))) {
            build(profile);
        }
        directory
    })
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// When a source file was last changed.
fn newest(root: &Path) -> Option<SystemTime> {
    let mut newest = modified(&root.join("Cargo.toml"));
    let mut unseen = vec![root.join("src"), root.join("examples")];
    while let Some(directory) = unseen.pop() {
        for entry in fs::read_dir(directory).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                unseen.push(path);
            } else {
                newest = newest.max(modified(&path));
            }
        }
    }
    newest
}

fn build(profile: &Path) {
    let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--examples", "--profile"])
        .arg(if name == "debug" { "dev" } else { name })
        .arg("--target-dir")
        .arg(profile.parent().expect("a target directory"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(status.expect("cargo runs").success(), "the examples can't be built");
}
