//! Canaries: a copy of the crate in which known bugs can be planted, and the search for each.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs, io};

#[path = "../../tests/simulation/canaries.rs"]
mod canaries;

use canaries::ALL;

/// The function that selects the planted bug. Only the copy contains it.
const CANARY_MODULE: &str = r#"
/// Returns whether the environment selects this bug.
pub(crate) fn planted(name: &str) -> bool {
    static PLANTED: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("CANARY").unwrap_or_default()) == name
}
"#;

/// The build of the copy.
struct CanaryBuild {
    program: PathBuf,
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_name() == "target" {
            // The output of cargo-fuzz.
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Inserts every bug beside the code that it replaces.
fn plant(src: &Path) -> io::Result<()> {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for canary in ALL {
        let text = match files.remove(canary.file) {
            Some(text) => text,
            None => fs::read_to_string(src.join(canary.file))?,
        };
        if text.matches(canary.was).count() != 1 {
            let what = format!("{}: its code in {} has changed", canary.name, canary.file);
            return Err(io::Error::other(what));
        }
        let planted = format!("crate::canary::planted(\"{}\")", canary.name);
        let becomes = canary.becomes.replace("PLANTED", &planted);
        files.insert(canary.file, text.replace(canary.was, &becomes));
    }
    for (file, text) in files {
        fs::write(src.join(file), text)?;
    }
    let lib = fs::read_to_string(src.join("lib.rs"))?;
    fs::write(src.join("lib.rs"), lib + "\nmod canary;\n")?;
    fs::write(src.join("canary.rs"), CANARY_MODULE)
}

impl CanaryBuild {
    /// Copies the crate next to the target directory of the builds, plants the bugs and builds the
    /// copy.
    fn build() -> io::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = env::current_exe()?;
        // target/release/examples/simulate
        let target = program.ancestors().nth(3).ok_or(io::ErrorKind::NotFound)?;
        let home = target.join("canaries");
        if home.exists() {
            fs::remove_dir_all(&home)?;
        }
        for folder in ["src", "tests", "examples", "benches"] {
            copy(&root.join(folder), &home.join(folder))?;
        }
        for file in ["Cargo.toml", "Cargo.lock"] {
            fs::copy(root.join(file), home.join(file))?;
        }
        plant(&home.join("src"))?;
        let built = target.join("canaries-target");
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .current_dir(&home)
            .env("CARGO_TARGET_DIR", &built)
            .args(["build", "--quiet", "--locked", "--release", "--features", "sim"])
            .args(["--config", "profile.release.lto=false"])
            .args(["--config", "profile.release.codegen-units=16"])
            .args(["--example", "simulate"])
            .status()?;
        if !status.success() {
            return Err(io::Error::other("the build of the copy with the bugs failed"));
        }
        Ok(Self { program: built.join("release/examples/simulate") })
    }

    /// Returns the first violation in these seeds with this bug, if any.
    fn search(&self, name: &str, seeds: &Range<u64>, steps: usize) -> io::Result<Option<String>> {
        let output = Command::new(&self.program)
            .env("CANARY", name)
            .args(["--seeds", &format!("{}..{}", seeds.start, seeds.end)])
            .args(["--steps", &steps.to_string(), "--no-shrink"])
            .output()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = stdout.lines().last().unwrap_or_default();
        if last.contains("violations=0") {
            return Ok(None);
        }
        let found: Vec<&str> = stdout.lines().take(2).collect();
        Ok(Some(found.join(" ").chars().take(160).collect()))
    }
}

/// Plants one bug, or each bug in turn. Prints the violation that each planted bug causes. Fails if
/// a planted bug causes no violation, or if a violation occurs without a planted bug.
pub(crate) fn find(name: &str, seeds: &Range<u64>, steps: usize) -> ExitCode {
    let mut names: Vec<&str> = ALL.iter().map(|canary| canary.name).collect();
    names.dedup();
    if name != "all" {
        names.retain(|known| *known == name);
        if names.is_empty() {
            let known: Vec<&str> = ALL.iter().map(|canary| canary.name).collect();
            eprintln!("unknown canary {name}; known are: all, {}", known.join(", "));
            return ExitCode::from(2);
        }
    }
    match try_find(&names, seeds, steps) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_find(names: &[&str], seeds: &Range<u64>, steps: usize) -> io::Result<usize> {
    let build = CanaryBuild::build()?;
    let few = seeds.start..seeds.end.min(seeds.start + 100);
    if let Some(found) = build.search("none", &few, steps)? {
        println!("without a canary: {found}");
        return Ok(1);
    }
    let mut found = 0;
    for name in names {
        match build.search(name, seeds, steps)? {
            Some(what) => {
                found += 1;
                println!("{name}: {what}");
            }
            None => println!("{name}: NOT FOUND"),
        }
    }
    println!("canaries={} found={found}", names.len());
    Ok(names.len() - found)
}
