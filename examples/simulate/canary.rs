pub(crate) fn hunt(_name: &str, _seeds: &std::ops::Range<u64>, _steps: usize) -> std::process::ExitCode {
    todo!()
}
