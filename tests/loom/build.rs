//! Writes the source for the loom tests. It contains the modules of `src` that other threads use:
//! once unchanged, and once for each mutation.
//!
//! Each variant is a module that contains these modules and the models. Apart from its mutation, it
//! differs from `src` in two ways: `std::sync` becomes `stubs::sync`, and the unit tests are left
//! out.

use std::fs;
use std::path::Path;

/// The name of each module and its path in `src`.
const MODULES: [(&str, &str); 4] = [
    ("permits", "shared/permits"),
    ("mailbox", "shared/mailbox"),
    ("command", "command"),
    ("commands", "commands"),
];

/// A mutation replaces `code`, which occurs exactly once in the modules, by `broken`.
struct Mutation {
    name: &'static str,
    code: &'static str,
    broken: &'static str,
}

const MUTATIONS: [Mutation; 10] = [
    Mutation {
        name: "pending_cleared_after_taking",
        code: "
        if !self.pending.swap(false, Ordering::AcqRel) {
            return false;
        }
        let queue = &mut *lock(&self.queue);
        let commands = &mut queue.commands;
        into.extend(commands.drain(..max.min(commands.len())));
        if !commands.is_empty() {
            self.pending.store(true, Ordering::Release);
        }
        mem::take(&mut queue.notified)",
        broken: "
        if !self.is_pending() {
            return false;
        }
        let mut queue = lock(&self.queue);
        let count = max.min(queue.commands.len());
        into.extend(queue.commands.drain(..count));
        let left = !queue.commands.is_empty();
        let notified = mem::take(&mut queue.notified);
        drop(queue);
        self.pending.store(left, Ordering::Release);
        notified",
    },
    Mutation {
        name: "pending_set_without_the_lock",
        code: "
        let first = !self.pending.swap(true, Ordering::AcqRel);
        drop(queue);",
        broken: "
        drop(queue);
        let first = !self.pending.swap(true, Ordering::AcqRel);",
    },
    Mutation {
        name: "woken_before_the_command_is_queued",
        code: "
        queue.commands.push_back(command);
        self.wake(queue);",
        broken: "
        self.wake(queue);
        queue = lock(&self.queue);
        queue.commands.push_back(command);",
    },
    Mutation {
        name: "pending_not_set_for_the_rest",
        code: "
        if !commands.is_empty() {",
        broken: "
        if false {",
    },
    Mutation {
        name: "queued_after_puts_were_refused",
        code: "
        queue.commands.push_back(Command::Put(socket));",
        broken: "
        drop(queue);
        queue = lock(&self.queue);
        queue.commands.push_back(Command::Put(socket));",
    },
    Mutation {
        name: "closed_without_returning_commands",
        code: "
        mem::take(&mut queue.commands)",
        broken: "
        queue.commands.clear();
        VecDeque::new()",
    },
    Mutation {
        name: "notified_after_the_wake",
        code: "
            LifeCycle::Running | LifeCycle::Stopping => queue.notified = true,
        }
        self.wake(queue);",
        broken: "
            LifeCycle::Running | LifeCycle::Stopping => {}
        }
        self.wake(queue);
        lock(&self.queue).notified = true;",
    },
    Mutation {
        name: "published_without_notify",
        code: "
        self.published.notify_all();",
        broken: "",
    },
    Mutation {
        name: "stats_request_number_not_increased",
        code: "
        queue.stats_requests += 1;",
        broken: "
        queue.stats_requests = 1;",
    },
    Mutation {
        name: "permit_checked_before_it_is_taken",
        code: "
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < max).then_some(taken + 1)
            })
            .is_ok()",
        broken: "
        let free = self.taken.load(Ordering::Relaxed) < max;
        if free {
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
        free",
    },
];

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets the variable");
    let here = Path::new(&here);
    let source = here.join("../../src");
    let modules = MODULES.map(|(name, path)| {
        let path = source.join(path).with_extension("rs");
        println!("cargo::rerun-if-changed={}", path.display());
        (name, on_loom(&fs::read_to_string(&path).expect("a module of src")))
    });
    let models = here.join("models.rs");
    let mut written = module("original", &modules, &models);
    for Mutation { name, code, broken } in MUTATIONS {
        let hits: usize = modules.iter().map(|(_, text)| text.matches(code).count()).sum();
        assert_eq!(hits, 1, "{name}: this code does not occur once in src:{code}");
        let modules = modules.clone().map(|(module, text)| (module, text.replace(code, broken)));
        written += &module(name, &modules, &models);
    }
    println!("cargo::rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").expect("cargo sets the variable");
    fs::write(Path::new(&out).join("variants.rs"), written).expect("the variants are written");
}

/// Removes the unit tests of a module and makes it import from the surrounding module.
fn on_loom(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]").next().expect("the code before the tests");
    let code = code
        .replace("use std::sync::", "use super::sync::")
        .replace("crate::shared::", "super::")
        .replace("crate::", "super::");
    assert!(
        !code.contains("std::sync") && !code.contains("std::thread"),
        "loom would not see these"
    );
    code
}

fn module(name: &str, modules: &[(&str, String)], models: &Path) -> String {
    let modules = modules.iter().map(|(module, text)| format!("mod {module} {{\n{text}\n}}"));
    let modules = modules.collect::<Vec<_>>().join("\n");
    let models = models.display();
    format!(
        "#[allow(dead_code, unused_mut, clippy::pedantic)]
mod {name} {{
use crate::stubs::{{config, connect_options, error, id, socket, stats, sync, time}};
{modules}
#[path = \"{models}\"]
pub(super) mod models;
}}
"
    )
}
