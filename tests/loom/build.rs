//! Takes the modules where threads meet from `src`, as they are, puts them on loom's locks and
//! atomics, and writes them down once whole and once for each way to break them.
//!
//! Each is a module with the modules and the models in it. Only two things differ from `src`:
//! `std::sync` is `world::sync`, and the unit tests are left out.

use std::fs;
use std::path::Path;

/// Each with its path in `src`.
const MODULES: [(&str, &str); 4] = [
    ("permits", "shared/permits"),
    ("mailbox", "shared/mailbox"),
    ("command", "command"),
    ("commands", "commands"),
];

/// A name, and what to put in the place of what.
struct Break {
    name: &'static str,
    code: &'static str,
    broken: &'static str,
}

const BREAKS: [Break; 9] = [
    Break {
        name: "cleared_after_taking",
        code: "
        if self.pending.swap(false, Ordering::AcqRel) {
            let commands = &mut lock(&self.queue).commands;
            into.extend(commands.drain(..max.min(commands.len())));
            if !commands.is_empty() {
                self.pending.store(true, Ordering::Release);
            }
        }",
        broken: "
        if self.is_pending() {
            let mut queue = lock(&self.queue);
            let count = max.min(queue.commands.len());
            into.extend(queue.commands.drain(..count));
            let left = !queue.commands.is_empty();
            drop(queue);
            self.pending.store(left, Ordering::Release);
        }",
    },
    Break {
        name: "marked_without_the_lock",
        code: "
        let first = !self.pending.swap(true, Ordering::AcqRel);
        drop(queue);",
        broken: "
        drop(queue);
        let first = !self.pending.swap(true, Ordering::AcqRel);",
    },
    Break {
        name: "woken_before_it_is_queued",
        code: "
        queue.commands.push_back(command);
        self.wake(queue);",
        broken: "
        self.wake(queue);
        queue = lock(&self.queue);
        queue.commands.push_back(command);",
    },
    Break {
        name: "no_mark_for_what_is_left",
        code: "
            if !commands.is_empty() {",
        broken: "
            if false {",
    },
    Break {
        name: "queued_after_the_door_was_shut",
        code: "
        queue.commands.push_back(Command::Put(socket));",
        broken: "
        drop(queue);
        queue = lock(&self.queue);
        queue.commands.push_back(Command::Put(socket));",
    },
    Break {
        name: "closed_without_giving_back",
        code: "
        std::mem::take(&mut queue.commands)",
        broken: "
        queue.commands.clear();
        VecDeque::new()",
    },
    Break {
        name: "published_in_silence",
        code: "
        self.published.notify_all();",
        broken: "",
    },
    Break {
        name: "answered_by_any_answer",
        code: "
        queue.questions += 1;",
        broken: "
        queue.questions = 1;",
    },
    Break {
        name: "counted_before_it_is_taken",
        code: "
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (max == 0 || taken < max).then_some(taken + 1)
            })
            .is_ok()",
        broken: "
        let free = max == 0 || self.taken.load(Ordering::Relaxed) < max;
        if free {
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
        free",
    },
];

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo names the folder");
    let here = Path::new(&here);
    let source = here.join("../../src");
    let modules = MODULES.map(|(name, path)| {
        let path = source.join(path).with_extension("rs");
        println!("cargo::rerun-if-changed={}", path.display());
        (name, on_loom(&fs::read_to_string(&path).expect("a module")))
    });
    let models = here.join("models.rs");
    let mut written = module("whole", &modules, &models);
    for Break { name, code, broken } in BREAKS {
        let hits: usize = modules.iter().map(|(_, text)| text.matches(code).count()).sum();
        assert_eq!(hits, 1, "{name}: src has changed, this must be broken in another way:{code}");
        let modules = modules.clone().map(|(module, text)| (module, text.replace(code, broken)));
        written += &module(name, &modules, &models);
    }
    println!("cargo::rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").expect("cargo names the folder to write to");
    fs::write(Path::new(&out).join("variants.rs"), written).expect("write");
}

/// A module without its unit tests, on what the module around it has imported.
fn on_loom(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]").next().expect("what comes before the tests");
    let code = code
        .replace("use std::sync::", "use super::sync::")
        .replace("crate::shared::", "super::")
        .replace("crate::", "super::");
    assert!(!code.contains("std::sync") && !code.contains("std::thread"), "loom would not see it");
    code
}

fn module(name: &str, modules: &[(&str, String)], models: &Path) -> String {
    let modules = modules.iter().map(|(module, text)| format!("mod {module} {{\n{text}\n}}"));
    let modules = modules.collect::<Vec<_>>().join("\n");
    let models = models.display();
    format!(
        "#[allow(dead_code, clippy::pedantic)]
mod {name} {{
use crate::world::{{config, error, id, connect_options, socket, stats, sync}};
{modules}
#[path = \"{models}\"]
pub(super) mod models;
}}
"
    )
}
