/// Why a kernel could not be generated. All but the first are faults of a template.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No template computes this op.
    #[error("{id}: no template computes `{op}`")]
    NoTemplate {
        /// The kernel asked for.
        id: String,
        /// Its op.
        op: String,
    },
    /// A template is not Rust.
    #[error("{path}: {source}")]
    Parse {
        /// The template's path.
        path: &'static str,
        /// What the parser says.
        source: syn::Error,
    },
    /// A template lacks a constant that the spec sets.
    #[error("{path}: the spec sets {constant} to {value}, but the template has no such constant")]
    MissingConstant {
        /// The template's path.
        path: &'static str,
        /// Name of the constant.
        constant: &'static str,
        /// Value in the spec.
        value: usize,
    },
}
