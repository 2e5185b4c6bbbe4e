//! Values that have a name on the command line and in the table.

/// An enumeration whose values are known by name.
pub(crate) trait Named: Copy + 'static {
    /// All of them, in the order in which they are shown.
    const ALL: &[Self];

    fn name(self) -> &'static str;

    /// The one of this name.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.name() == name)
    }
}
