//! Copies pure modules from `src`, without their unit tests, so that micro-benchmarks can reach
//! code that is not public; and records which compiler made the figures.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// The modules that the wheel and the framing consist of.
const MODULES: [&str; 3] = ["time", "panics", "framing"];
const DATA_STRUCTURES: [&str; 3] = ["index_list", "wheel", "buffer"];

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo names the folder");
    let source = Path::new(&folder).join("../src");
    let modules = copies(&source, &MODULES);
    let data_structures = copies(&source.join("ds"), &DATA_STRUCTURES);
    let text = format!("{modules}\nmod ds {{\n{data_structures}\n}}\n");
    let out = env::var("OUT_DIR").expect("cargo names the folder to write to");
    fs::write(Path::new(&out).join("modules.rs"), text).expect("write");

    let compiler = env::var("RUSTC").expect("cargo names the compiler");
    let version = Command::new(compiler).arg("--version").output().expect("its version");
    let version = String::from_utf8_lossy(&version.stdout);
    println!("cargo::rustc-env=COMPILER={}", version.trim());
    println!("cargo::rerun-if-changed=build.rs");
}

fn copies(folder: &Path, names: &[&str]) -> String {
    let mut copies = String::new();
    for name in names {
        let path = folder.join(name).with_extension("rs");
        println!("cargo::rerun-if-changed={}", path.display());
        let text = fs::read_to_string(&path).expect("a module");
        let code = text.split("\n#[cfg(test)]").next().expect("what comes before the tests");
        let allow = "#[allow(dead_code, clippy::all, clippy::pedantic)]";
        writeln!(copies, "{allow}\npub(crate) mod {name} {{\n{code}\n}}")
            .expect("a string takes it");
    }
    copies
}
