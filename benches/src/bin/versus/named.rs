//! Values with names, for the command line and the table.

/// An enumeration whose values have names.
pub(crate) trait Named: Copy + 'static {
    /// All values, in the order in which they are shown.
    const ALL: &[Self];

    /// Returns the name of this value.
    fn name(self) -> &'static str;

    /// Returns the value of this name, if there is one.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.name() == name)
    }
}
