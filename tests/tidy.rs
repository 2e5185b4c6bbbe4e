//! Tests of the rules of the architecture. Most of the rules forbid something.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the modules of `docs/ARCHITECTURE.md`, lowest first, and whether each is pure.
fn modules() -> Vec<(String, bool)> {
    let text = fs::read_to_string("docs/ARCHITECTURE.md").expect("the architecture");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let modules: Vec<_> = rows
        .map(|(name, description)| (name.to_owned(), description.ends_with("(pure) |")))
        .collect();
    assert!(modules.len() > 30, "the table of modules: {modules:?}");
    modules
}

const LONGEST_FILE: usize = 400;
const LONGEST_FUNCTION: usize = 60;

/// One file of `src`, without its tests.
struct Source {
    path: PathBuf,
    lines: Vec<String>,
}

impl Source {
    /// Returns the path of the module, such as `ds/wheel`.
    fn name(&self) -> String {
        let inside = self.path.strip_prefix("src").expect("below src").with_extension("");
        inside.to_str().expect("a name").to_owned()
    }

    /// Returns the numbered lines without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.lines.iter().enumerate();
        let code = numbered.filter(|(_, line)| !line.trim_start().starts_with("//"));
        code.map(|(index, line)| (index + 1, line.as_str()))
    }

    /// Returns the lines of code that contain `word`, as `path:number`.
    fn lines_with(&self, word: &str) -> Vec<String> {
        let hits = self.code().filter(|(_, line)| contains_word(line, word));
        hits.map(|(number, _)| format!("{}:{number}", self.path.display())).collect()
    }
}

fn sources() -> Vec<Source> {
    fn walk(directory: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
                found.push(Source { path, lines: lines.map(str::to_owned).collect() });
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("src"), &mut found);
    assert!(found.len() > 20, "the tests run in the directory of the package");
    found
}

/// Returns whether `line` contains `word` without a letter, digit or underscore next to it.
fn contains_word(line: &str, word: &str) -> bool {
    let is_word_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_word_part) && !line[at + word.len()..].starts_with(is_word_part)
    })
}

fn lines_with(word: &str) -> Vec<String> {
    sources().iter().flat_map(|source| source.lines_with(word)).collect()
}

/// Returns the rank of a module, or the rank of its parent if the module is not in the list.
fn rank(modules: &[(String, bool)], name: &str) -> Option<usize> {
    let own_rank = modules.iter().position(|(known, _)| known == name);
    own_rank.or_else(|| rank(modules, name.rsplit_once('/')?.0))
}

#[test]
fn imports_point_down_and_form_no_cycle() {
    let modules = modules();
    for source in sources() {
        let name = source.name();
        let own_rank = rank(&modules, &name).unwrap_or_else(|| panic!("{name} is not in the list"));
        for (number, line) in source.code() {
            for (at, prefix) in line.match_indices("crate::") {
                let path = line[at + prefix.len()..]
                    .split(|letter: char| !letter.is_alphanumeric() && !"_:".contains(letter))
                    .next()
                    .unwrap_or_default();
                let named = path.replace("::", "/").to_lowercase();
                let location = format!("{}:{number}", source.path.display());
                let other = rank(&modules, &named).unwrap_or_else(|| panic!("{location}: {named}"));
                assert!(
                    other <= own_rank,
                    "{location}: {named} comes after {name} in docs/ARCHITECTURE.md"
                );
            }
        }
    }
}

#[test]
fn only_one_file_names_mio() {
    for location in lines_with("mio") {
        assert!(location.starts_with("src/sys/os.rs"), "{location} names mio");
    }
}

#[test]
fn only_one_place_reads_the_clock() {
    for location in [lines_with("Instant"), lines_with("SystemTime")].concat() {
        assert!(location.starts_with("src/sys/os.rs"), "{location} reads a clock");
    }
    assert_eq!(lines_with("Instant::now").len(), 1, "one call of Instant::now");
}

#[test]
fn only_one_function_closes_and_only_one_catches_panics() {
    assert_eq!(lines_with("pool.remove").len(), 1, "only one function removes workers");
    assert_eq!(lines_with("Verdict::Close(reason) => return self.close").len(), 1);
    for location in lines_with("catch_unwind") {
        assert!(location.starts_with("src/panics.rs"), "{location} catches panics");
    }
}

#[test]
fn pure_modules_use_no_io_no_clock_and_no_threads() {
    let modules = modules();
    let pure = |source: &&Source| rank(&modules, &source.name()).is_some_and(|at| modules[at].1);
    let sources = sources();
    assert!(sources.iter().filter(pure).count() >= 8, "the pure modules are marked");
    for source in sources.iter().filter(pure) {
        for word in ["std::io", "std::net", "std::os", "std::sync", "std::thread", "std::fs"] {
            assert!(source.lines_with(word).is_empty(), "{} uses {word}", source.path.display());
        }
    }
}

#[test]
fn src_contains_no_unwrap_rc_unsafe_todo_or_print() {
    let forbidden =
        ["unwrap", "RefCell", "Rc", "unsafe", "todo", "unimplemented", "dbg", "println"];
    for word in forbidden {
        assert_eq!(lines_with(word), [""; 0], "{word}");
    }
    let expects = lines_with("expect");
    assert_eq!(expects, [""; 0], "no code may panic on purpose");
}

#[test]
fn no_file_and_no_function_is_too_long() {
    for source in sources() {
        let path = source.path.display();
        let length = source.lines.len();
        assert!(length <= LONGEST_FILE, "{path} has {length} lines");
        for (start, line) in source.lines.iter().enumerate() {
            let code = line.trim_start();
            if !code.starts_with("//") && contains_word(code, "fn") && !code.ends_with(';') {
                let end = format!("{}}}", &line[..line.len() - code.len()]);
                let rest = source.lines[start..].iter();
                let length = rest.take_while(|line| **line != end).count() + 1;
                let one_line = line.ends_with('}');
                assert!(one_line || length <= LONGEST_FUNCTION, "{path}:{}: {length}", start + 1);
            }
        }
    }
}

#[test]
fn every_module_has_a_doc_comment() {
    for source in sources() {
        let head = source.lines.iter().take_while(|line| line.starts_with("//!")).count();
        assert!(head >= 1, "{} has no module documentation", source.path.display());
    }
}

#[test]
fn every_public_item_is_documented() {
    let items = ["fn", "struct", "enum", "trait", "const", "type"];
    for source in sources() {
        for (number, line) in source.code() {
            let code = line.trim_start();
            if !items.iter().any(|item| code.starts_with(&format!("pub {item} "))) {
                continue;
            }
            let above = source.lines[..number - 1].iter().rev();
            let mut above = above.skip_while(|line| line.trim_start().starts_with("#["));
            let documented = above.next().is_some_and(|line| line.trim_start().starts_with("///"));
            assert!(documented, "{}:{number}: {code}", source.path.display());
        }
    }
}

/// Returns the tests that the threat model names, as `file::test`.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let named: Vec<_> = quoted.filter_map(|name| name.split_once("::")).collect();
    assert!(named.len() > 20, "the tests in the threat model: {named:?}");
    named
}

#[test]
fn the_threat_model_names_tests_that_exist() {
    let text = fs::read_to_string("docs/threat-model.md").expect("the threat model");
    for (file, test) in named_tests(&text) {
        let places = [
            format!("tests/{file}.rs"),
            format!("tests/behaviour/{file}.rs"),
            format!("src/{file}.rs"),
        ];
        let mut sources = places.iter().filter_map(|path| fs::read_to_string(path).ok());
        let head = format!("#[test]\n    fn {test}() {{");
        let exists = |source: String| {
            let source = source.replace("\nfn", "\n    fn");
            source.contains(&head)
        };
        assert!(sources.any(exists), "there is no test {file}::{test}");
    }
}

#[test]
fn the_threat_model_states_the_current_defaults() {
    let text = fs::read_to_string("docs/threat-model.md").expect("the threat model");
    let config = fs::read_to_string("src/config.rs").expect("the configuration");
    for (constant, statement) in [
        ("BUFFER_SIZE: usize = 5120;", "`buffer_size`, 5120 bytes"),
        ("WRITE_LIMIT: usize = 1 << 20;", "`write_limit`, 1 MiB"),
        ("CLIENTS_DEADLINE: Duration = Duration::from_secs(3);", "`clients_deadline`, 3 s"),
        ("REQUEST_DEADLINE: Duration = Duration::from_secs(30);", "`request_deadline`, 30 s"),
        ("PAUSED_DEADLINE: Duration = Duration::from_secs(30);", "`paused_deadline`, 30 s"),
        ("max_workers: None,", "`max_workers`, **none unless set**"),
    ] {
        assert!(config.contains(constant) && text.contains(statement), "{constant} {statement}");
    }
}

#[test]
fn test_names_have_at_most_70_characters() {
    let mut folders = ["src", "tests", "examples", "benches"].map(PathBuf::from).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                for name in text.split("#[test]").skip(1).filter_map(|test| {
                    test.split_once("fn ").and_then(|(_, rest)| rest.split('(').next())
                }) {
                    assert!(name.len() <= 70, "{}: {name}", path.display());
                }
            }
        }
    }
}
