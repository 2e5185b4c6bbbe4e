//! Copies modules of `src`, without their unit tests, for the micro-benchmarks, because these
//! measure code that is not public. Also records the compiler version for the figures of `gate`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Modules that the benchmarks of the wheel and of the framing need.
const MODULES: [&str; 3] = ["time", "panics", "framing"];
const DATA_STRUCTURES: [&str; 3] = ["index_list", "wheel", "buffer"];

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let source = Path::new(&folder).join("../src");
    let modules = copies(&source, &MODULES);
    let data_structures = copies(&source.join("ds"), &DATA_STRUCTURES);
    let text = format!("{modules}\nmod ds {{\n{data_structures}\n}}\n");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("modules.rs"), text).expect("OUT_DIR is writable");

    let compiler = env::var("RUSTC").expect("cargo sets RUSTC");
    let version = Command::new(compiler).arg("--version").output().expect("rustc runs");
    let version = String::from_utf8_lossy(&version.stdout);
    println!("cargo::rustc-env=COMPILER={}", version.trim());
    println!("cargo::rerun-if-changed=build.rs");
}

fn copies(folder: &Path, names: &[&str]) -> String {
    let mut copies = String::new();
    for name in names {
        let path = folder.join(name).with_extension("rs");
        println!("cargo::rerun-if-changed={}", path.display());
        let text = fs::read_to_string(&path).expect("the module exists");
        let code = text.split("\n#[cfg(test)]").next().expect("split returns at least one part");
        let allow = "#[allow(dead_code, clippy::all, clippy::pedantic)]";
        writeln!(copies, "{allow}\npub(crate) mod {name} {{\n{code}\n}}")
            .expect("writing to a string cannot fail");
    }
    copies
}
