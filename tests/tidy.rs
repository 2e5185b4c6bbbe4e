//! The architecture, stated as absences and run as tests: what no room may do.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules in the order of `docs/ARCHITECTURE.md`, from the ground up, and whether each is pure.
fn modules() -> Vec<(String, bool)> {
    let text = fs::read_to_string("docs/ARCHITECTURE.md").expect("the architecture");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let modules: Vec<_> =
        rows.map(|(name, says)| (name.to_owned(), says.ends_with("(pure) |"))).collect();
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
    /// Its path as a module, such as `ds/wheel`.
    fn name(&self) -> String {
        let inside = self.path.strip_prefix("src").expect("below src").with_extension("");
        inside.to_str().expect("a name").to_owned()
    }

    /// Numbered lines, comments left out.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.lines.iter().enumerate();
        let code = numbered.filter(|(_, line)| !line.trim_start().starts_with("//"));
        code.map(|(index, line)| (index + 1, line.as_str()))
    }

    /// Where `word` stands in the code.
    fn places_of(&self, word: &str) -> Vec<String> {
        let hits = self.code().filter(|(_, line)| contains_word(line, word));
        hits.map(|(number, _)| format!("{}:{number}", self.path.display())).collect()
    }
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).expect("a folder") {
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
    assert!(found.len() > 20, "the tests run in the package's folder");
    found
}

/// Whether `word` is in `line`, with no letter, digit or underscore around it.
fn contains_word(line: &str, word: &str) -> bool {
    let joins = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(joins) && !line[at + word.len()..].starts_with(joins))
}

fn places_of(word: &str) -> Vec<String> {
    sources().iter().flat_map(|source| source.places_of(word)).collect()
}

/// The rank of a module: its own, or else its parent's, of which it is a part.
fn rank(modules: &[(String, bool)], name: &str) -> Option<usize> {
    let own = modules.iter().position(|(known, _)| known == name);
    own.or_else(|| rank(modules, name.rsplit_once('/')?.0))
}

#[test]
fn imports_point_down_and_have_no_circle() {
    let modules = modules();
    for source in sources() {
        let name = source.name();
        let own = rank(&modules, &name).unwrap_or_else(|| panic!("{name} has no place"));
        for (number, line) in source.code() {
            for (at, prefix) in line.match_indices("crate::") {
                let path = line[at + prefix.len()..]
                    .split(|letter: char| !letter.is_alphanumeric() && !"_:".contains(letter))
                    .next()
                    .unwrap_or_default();
                let named = path.replace("::", "/").to_lowercase();
                let place = format!("{}:{number}", source.path.display());
                let other = rank(&modules, &named).unwrap_or_else(|| panic!("{place}: {named}"));
                assert!(other <= own, "{place}: {name} imports {named}, which is above it");
            }
        }
    }
}

#[test]
fn one_file_names_mio() {
    for place in places_of("mio") {
        assert!(place.starts_with("src/sys/os.rs"), "{place} names mio");
    }
}

#[test]
fn one_place_reads_the_clock() {
    for place in [places_of("Instant"), places_of("SystemTime")].concat() {
        assert!(place.starts_with("src/sys/os.rs"), "{place} knows a clock");
    }
    assert_eq!(places_of("Instant::now").len(), 1, "whatever is asked of it");
}

#[test]
fn one_function_closes_and_one_catches_panics() {
    assert_eq!(places_of("pool.remove").len(), 1, "who removes a worker closes it");
    assert_eq!(places_of("Verdict::Close(reason) => return self.close").len(), 1);
    for place in places_of("catch_unwind") {
        assert!(place.starts_with("src/panics.rs"), "{place} catches panics by itself");
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
            assert!(source.places_of(word).is_empty(), "{} uses {word}", source.path.display());
        }
    }
}

#[test]
fn nothing_unwraps_shares_or_is_left_to_do() {
    let forbidden =
        ["unwrap", "RefCell", "Rc", "unsafe", "todo", "unimplemented", "dbg", "println"];
    for word in forbidden {
        assert_eq!(places_of(word), [""; 0], "{word}");
    }
    let expects = places_of("expect");
    assert_eq!(expects, [""; 0], "nothing may panic on purpose");
}

#[test]
fn no_file_and_no_function_is_long() {
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
fn every_module_says_what_it_is() {
    for source in sources() {
        let head = source.lines.iter().take_while(|line| line.starts_with("//!")).count();
        assert!(head >= 1, "{} does not say what it is", source.path.display());
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

/// The tests that the threat model names, as `file::test`.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let named: Vec<_> = quoted.filter_map(|name| name.split_once("::")).collect();
    assert!(named.len() > 20, "it names tests: {named:?}");
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
fn the_threat_model_knows_the_defaults() {
    let text = fs::read_to_string("docs/threat-model.md").expect("the threat model");
    let config = fs::read_to_string("src/config.rs").expect("the configuration");
    for (constant, said) in [
        ("BUFFER_SIZE: usize = 5120;", "`buffer_size`, 5120 bytes"),
        ("WRITE_LIMIT: usize = 1 << 20;", "`write_limit`, 1 MiB"),
        ("CLIENTS_DEADLINE: Duration = Duration::from_secs(3);", "`clients_deadline`, 3 s"),
        ("REQUEST_DEADLINE: Duration = Duration::from_secs(30);", "`request_deadline`, 30 s"),
        ("max_workers: 0,", "`max_workers`, **none unless set**"),
    ] {
        assert!(config.contains(constant) && text.contains(said), "{constant} {said}");
    }
}
