/// Reasons for which a kernel could not be generated. All but the first two are faults of a template.
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
    /// The kernel cannot be part of a library without `std`.
    #[error(
        "{id}: scalar kernels need the float functions of `std`, which a library made on the \
             host does without; every program has them built in"
    )]
    NeedsStd {
        /// The kernel asked for.
        id: String,
    },
    /// A template is not Rust.
    #[error("{path}: {source}")]
    Parse {
        /// The template's path.
        path: &'static str,
        /// The parser's message.
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
