//! Takes pure rooms from `src`, as they are but for their unit tests, so that micro-benchmarks can
//! reach what is not public; and remembers which compiler made the figures.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What the wheel and the framing are made of.
const ROOMS: [&str; 6] = ["time", "links", "wheel", "guard", "buffer", "framing"];

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo names the folder");
    let source = Path::new(&folder).join("../src");
    let mut rooms = String::new();
    for room in ROOMS {
        let path = source.join(room).with_extension("rs");
        println!("cargo::rerun-if-changed={}", path.display());
        let text = fs::read_to_string(&path).expect("a room");
        let code = text.split("\n#[cfg(test)]").next().expect("what comes before the tests");
        let allow = "#[allow(dead_code, clippy::all, clippy::pedantic)]";
        writeln!(rooms, "{allow}\nmod {room} {{\n{code}\n}}").expect("a string takes it");
    }
    let out = env::var("OUT_DIR").expect("cargo names the folder to write to");
    fs::write(Path::new(&out).join("rooms.rs"), rooms).expect("write");

    let compiler = env::var("RUSTC").expect("cargo names the compiler");
    let version = Command::new(compiler).arg("--version").output().expect("its version");
    let version = String::from_utf8_lossy(&version.stdout);
    println!("cargo::rustc-env=COMPILER={}", version.trim());
    println!("cargo::rerun-if-changed=build.rs");
}
