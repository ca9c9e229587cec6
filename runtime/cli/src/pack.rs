//! `bitnet-run pack`: keeps packed weights in a file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bitnet_runtime::engine::{Engine, Options, PackedStore, PackedWeights, Start, StoredFile};
use bitnet_runtime::error::Result;
use bitnet_runtime::file::bus_error;
use bitnet_runtime::file::packed::Form;

use crate::load::{self, KernelArgs, PlacementArgs};
use crate::output::{answer, human, note};

/// Keep the packed weights of a model in a file, so that later runs begin without packing them
///
/// Runs of the same model with the same kernels take the file by themselves. It is kept in the user's
/// cache unless -o says otherwise, and left alone once the model, the profile or this program changed
/// what it would hold.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Args {
    /// The model
    #[arg(short, long, value_name = "FILE", group = "what")]
    model: Option<PathBuf>,
    /// Write this file instead of one in the cache; runs take it with --packed FILE
    #[arg(short, long, value_name = "FILE", requires = "model", conflicts_with_all = ["list", "remove"])]
    output: Option<PathBuf>,
    /// List the files in the cache
    #[arg(long, group = "what")]
    list: bool,
    /// Remove a file of the list; all: every file
    #[arg(long, value_name = "FILE|all", group = "what")]
    remove: Option<PathBuf>,
    /// Threads; 0 or less: one for each CPU [default: the profile's, else one for each physical core]
    #[arg(
        short,
        long,
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = load::threads
    )]
    threads: Option<usize>,
    #[command(flatten)]
    kernels: KernelArgs,
}

/// Packs, lists or removes.
///
/// # Errors
/// Those of loading the model, and of writing, listing or removing files.
pub fn run(args: &Args) -> Result<()> {
    match (&args.model, &args.remove) {
        (Some(model), _) => pack(args, model),
        (None, Some(name)) => remove(&store()?, name),
        (None, None) => list(&store()?),
    }
}

fn store() -> Result<PackedStore> {
    PackedStore::of_user(|name| std::env::var_os(name))
}

fn pack(args: &Args, model: &Path) -> Result<()> {
    let start = Instant::now();
    let (path, options) = args.kernels.open(Some(model), PlacementArgs::default())?;
    bus_error::explain(&path, None, "leave it as it is while it is packed");
    let options = Options {
        threads: args.threads,
        start: Start::Packed,
        packed: PackedWeights::Never,
        tokenizer: false,
        progress: Some(load::progress(Default::default())),
        ..options
    };
    let engine = Engine::open(&path, options)?;
    load::tell(&engine);
    let (file, bytes) = engine.keep_packed(args.output.as_deref())?;
    let taken = match &args.output {
        Some(output) => format!("runs take it with --packed {}", output.display()),
        None => "runs of this model take it from now on".to_owned(),
    };
    note(format_args!(
        "packed: {}, {}, in {:.2} s; {taken}",
        file.display(),
        human(bytes),
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Prints a line for each file: its name, its size, the layouts in it, and the model.
fn list(store: &PackedStore) -> Result<()> {
    let files = store.list()?;
    let bytes = files.iter().map(|file| file.bytes).sum();
    note(format_args!(
        "{}: {} files, {}; at most {} and {}",
        store.folder().display(),
        files.len(),
        human(bytes),
        PackedStore::MOST,
        human(PackedStore::MOST_BYTES)
    ));
    answer(|out| files.iter().try_for_each(|file| writeln!(out, "{}", line(file))))
}

fn line(file: &StoredFile) -> String {
    let name = file.path.file_name().unwrap_or_default().display();
    let size = human(file.bytes);
    match &file.table {
        Ok(table) => {
            let mut layouts: Vec<&str> = Vec::new();
            for section in &table.sections {
                let layout = match section.form {
                    Form::Tiles(layout) => layout.name(),
                    Form::BlockTiles(layout) => layout.name(),
                    Form::Rows(layout) | Form::Columns(layout) => layout.name(),
                    Form::Sketch(format) => format.name(),
                    Form::Blocks(format) => format.name(),
                    Form::Refinement(_) | Form::Numbers(_) => continue,
                };
                if !layouts.contains(&layout) {
                    layouts.push(layout);
                }
            }
            let gone = if table.model.exists() { "" } else { " (gone)" };
            format!("{name}  {size}  {}  {}{gone}", layouts.join(","), table.model.display())
        }
        Err(error) => format!("{name}  {size}  unusable: {error}"),
    }
}

fn remove(store: &PackedStore, name: &Path) -> Result<()> {
    if name.as_os_str() != "all" {
        return store.remove(name);
    }
    store.list()?.iter().try_for_each(|file| store.remove(&file.path))
}
