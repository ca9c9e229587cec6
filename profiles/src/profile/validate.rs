//! The bounds of every field of a profile.

use super::{Choice, Profile, ProfileError, Role, Sparse};
use crate::{KernelId, Op, Shape};

impl Profile {
    /// Checks every field, as [`Profile::parse`] does.
    ///
    /// # Errors
    /// [`ProfileError::Content`] names the first field that is wrong, and what is allowed.
    pub fn validate(&self) -> Result<(), ProfileError> {
        let Self { tool, host, model, run, ops, .. } = self;
        for (item, text) in [
            ("tool.version", &tool.version),
            ("tool.date", &tool.date),
            ("host.cpu", &host.cpu),
            ("host.vendor", &host.vendor),
            ("model.name", &model.name),
            ("model.architecture", &model.architecture),
        ] {
            if text.len() > 256 || text.chars().any(char::is_control) {
                let problem = "longer than 256 bytes or with control characters";
                return Err(ProfileError::content(item, problem));
            }
        }
        if let Some(path) = &model.path {
            let path = path.to_string_lossy();
            if path.len() > 4096 || path.chars().any(char::is_control) {
                let problem = "longer than 4096 bytes or with control characters";
                return Err(ProfileError::content("model.path", problem));
            }
        }
        let hex = |item: &str, text: &str, len: usize| {
            if text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit()) {
                Ok(())
            } else {
                Err(ProfileError::content(item, format!("not {len} hexadecimal digits")))
            }
        };
        if let Some(fingerprint) = &tool.fingerprint {
            hex("tool.fingerprint", fingerprint, 16)?;
        }
        if let Some(sha256) = &tool.library_sha256 {
            hex("tool.library_sha256", sha256, 64)?;
        }
        hex("model.shapes", &model.shapes, 16)?;
        bounded("host.read_gb_per_s", host.read_gb_per_s.unwrap_or(0.0), 1e6)?;
        bounded("host.noise", host.noise.unwrap_or(0.0), 1e3)?;
        if !(1..=1024).contains(&run.threads) {
            let problem = format!("{}, but 1 to 1024 are allowed", run.threads);
            return Err(ProfileError::content("run.threads", problem));
        }
        for (i, choice) in ops.iter().enumerate() {
            choice.validate(&format!("op {} ({})", i + 1, choice.role))?;
            if ops[..i].iter().any(|o| o.role == choice.role && o.parts == choice.parts) {
                let item = format!("op {} ({})", i + 1, choice.role);
                return Err(ProfileError::content(item, "this role and these parts stand twice"));
            }
        }
        Ok(())
    }
}

impl Choice {
    fn validate(&self, item: &str) -> Result<(), ProfileError> {
        let wrong = |problem: String| Err(ProfileError::content(item, problem));
        if self.parts.is_empty() || self.parts.len() > 8 {
            return wrong(format!("{} parts, but 1 to 8 are allowed", self.parts.len()));
        }
        for part in &self.parts {
            if !(1..=Shape::MAX_ROWS).contains(&part.rows)
                || !(1..=Shape::MAX_COLS).contains(&part.cols)
            {
                return wrong(format!(
                    "a part of {part}, but 1 to {} rows and 1 to {} columns are allowed",
                    Shape::MAX_ROWS,
                    Shape::MAX_COLS
                ));
            }
        }
        if !(1..=1 << 16).contains(&self.count) {
            return wrong(format!("count {}, but 1 to 65536 is allowed", self.count));
        }
        let ternary = !matches!(self.role, Role::LmHead | Role::Attention);
        if ternary != self.layout.is_some() || ternary != self.prefill.is_some() {
            return wrong(format!(
                "a {} role takes {} layout and {} prefill kernel",
                if ternary { "ternary" } else { "head or attention" },
                if ternary { "a" } else { "no" },
                if ternary { "a" } else { "no" },
            ));
        }
        if let Some(sparse) = &self.sparse {
            self.validate_sparse(sparse, &format!("{item}.sparse"))?;
        }
        for (name, pick) in self.picks() {
            let item = format!("{item}.{name}");
            for id in
                [Some(pick.kernel), pick.runner_up(), Some(pick.built_in)].into_iter().flatten()
            {
                let fits = match (self.role, id.op) {
                    (Role::LmHead, Op::Head(_)) | (Role::Attention, Op::Attention) => true,
                    (_, Op::Ternary(_) | Op::Blocks(_)) => ternary,
                    _ => false,
                };
                if !fits {
                    let problem = format!("{id} does not serve the role {}", self.role);
                    return Err(ProfileError::content(item, problem));
                }
            }
            for id in [pick.kernel, pick.built_in] {
                if let (Some(layout), Some(own)) = (id.op.packing(), self.layout)
                    && layout != own
                {
                    let problem = format!("{id} reads {layout}, but the layout is {own}");
                    return Err(ProfileError::content(item, problem));
                }
                if name == "decode" && id.tile.tokens != 1 {
                    let problem = format!("{id} takes {} tokens, not 1", id.tile.tokens);
                    return Err(ProfileError::content(item, problem));
                }
                if let Some(shape) = id.shape
                    && self.parts.iter().any(|part| part.cols != shape.cols)
                {
                    let problem = format!("{id} is made for other shapes than the parts");
                    return Err(ProfileError::content(item, problem));
                }
            }
            if pick.built_in.shape.is_some() {
                let problem =
                    format!("{} is no built-in kernel: those take any shape", pick.built_in);
                return Err(ProfileError::content(item, problem));
            }
            let Some(timed) = &pick.timed else { continue };
            if !(1..=4096).contains(&timed.tokens) {
                let problem = format!("{} tokens, but 1 to 4096 are allowed", timed.tokens);
                return Err(ProfileError::content(item, problem));
            }
            for (field, value, most) in [
                ("median_us", timed.median_us, 1e12),
                ("mad_us", timed.mad_us, 1e12),
                ("gb_per_s", timed.gb_per_s, 1e6),
                ("share_of_limit", timed.share_of_limit, 100.0),
                ("runner_up_ratio", timed.runner_up_ratio.unwrap_or(1.0), 1e6),
            ] {
                bounded(&format!("{item}.{field}"), value, most)?;
            }
        }
        Ok(())
    }
}

impl Choice {
    fn validate_sparse(&self, sparse: &Sparse, item: &str) -> Result<(), ProfileError> {
        let wrong = |problem: String| Err(ProfileError::content(item, problem));
        for id in [sparse.kernel, sparse.built_in] {
            match (self.role, id.op) {
                (Role::GateUp, Op::Rows(_)) | (Role::Down, Op::Columns(_)) => {}
                (role, _) => {
                    return wrong(format!(
                        "{id} does not serve the role {role}: gate_up takes a rows kernel, down a \
                         columns kernel, and no other role any"
                    ));
                }
            }
            if let Some(shape) = id.shape
                && self.parts.iter().any(|part| part.cols != shape.cols)
            {
                return wrong(format!("{id} is made for other shapes than the parts"));
            }
        }
        let layout = |id: &KernelId| match id.op {
            Op::Rows(layout) | Op::Columns(layout) => Some(layout),
            _ => None,
        };
        if layout(&sparse.kernel) != layout(&sparse.built_in) {
            return wrong(format!("{} reads another packing", sparse.built_in));
        }
        if sparse.built_in.shape.is_some() {
            let built_in = sparse.built_in;
            return wrong(format!("{built_in} is no built-in kernel: those take any shape"));
        }
        bounded(&format!("{item}.below"), sparse.below, 1.0)?;
        let ratio = sparse.ratio_at_quarter.unwrap_or(1.0);
        bounded(&format!("{item}.ratio_at_quarter"), ratio, 1e6)
    }
}

/// A figure that is finite, not negative and at most `most`.
fn bounded(item: &str, value: f64, most: f64) -> Result<(), ProfileError> {
    if (0.0..=most).contains(&value) {
        Ok(())
    } else {
        Err(ProfileError::content(item, format!("{value:?}, but 0 to {most} is allowed")))
    }
}
