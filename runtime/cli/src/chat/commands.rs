//! The commands of a conversation, as ollama and llama-cli have them.

use bitnet_runtime::error::quoted;

use super::parameters::Parameters;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    System(String),
    Parameter { name: String, value: String },
    Switch(Switch, bool),
    JsonFormat(bool),
    Show(Show),
    Clear,
    Regenerate,
    Undo,
    Read(String),
    Save(String),
    Load(String),
    End,
    Help(Help),
}

/// A setting that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    Verbose,
    WordWrap,
    History,
    Think,
}

/// What `/show` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    Info,
    Parameters,
    System,
    Template,
    Messages,
    /// What ollama's models have and GGUF files have not.
    Nothing,
}

/// A part of the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    All,
    Set,
    Show,
}

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Message(String),
    Command(Command),
    /// A line with nothing to do, and a hint if there is one to give.
    Nothing(Option<String>),
}

/// Reads a message or a command.
pub fn read(text: &str) -> Input {
    let line = text.trim();
    if line.is_empty() {
        return Input::Nothing(None);
    }
    // What was pasted is a message, unless it sets a system prompt of several lines.
    if !text.starts_with('/') || line.contains('\n') && !text.starts_with("/set system") {
        // A space in front takes a slash for a slash.
        return Input::Message(
            text.strip_prefix(" /").map_or(text.to_owned(), |s| format!("/{s}")),
        );
    }
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let hint = |text: String| Input::Nothing(Some(text));
    let named = |make: fn(String) -> Command| match rest {
        "" => hint(format!("{word} needs the name of a file")),
        file => Input::Command(make(file.to_owned())),
    };
    let command = match (word, rest) {
        ("/set", _) => return set(rest),
        ("/show", "info") => Command::Show(Show::Info),
        ("/show", "parameters") => Command::Show(Show::Parameters),
        ("/show", "system") => Command::Show(Show::System),
        ("/show", "template") => Command::Show(Show::Template),
        ("/show", "messages") => Command::Show(Show::Messages),
        ("/show", "license" | "modelfile") => Command::Show(Show::Nothing),
        ("/show", _) | ("/?" | "/help", "show" | "/show") => Command::Help(Help::Show),
        ("/clear", "") => Command::Clear,
        ("/regen", "") => Command::Regenerate,
        ("/undo", "") => Command::Undo,
        ("/read", _) => return named(Command::Read),
        ("/save", _) => return named(Command::Save),
        ("/load", _) => return named(Command::Load),
        ("/bye" | "/exit" | "/quit", "") => Command::End,
        ("/?" | "/help", "set" | "/set") => Command::Help(Help::Set),
        ("/?" | "/help", _) => Command::Help(Help::All),
        _ => {
            return hint(format!(
                "unknown command {}; /? lists them; a space in front makes it a message",
                quoted(line)
            ));
        }
    };
    Input::Command(command)
}

/// Reads what follows `/set`.
fn set(rest: &str) -> Input {
    let (what, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let value = value.trim();
    let switch = |which, on| Input::Command(Command::Switch(which, on));
    match (what, value) {
        ("system", "") => Input::Nothing(Some("/set system needs a text".to_owned())),
        ("system", text) => {
            let quoted =
                text.strip_prefix(QUOTES).map(|text| text.strip_suffix(QUOTES).unwrap_or(text));
            let quoted = quoted.or_else(|| text.strip_prefix('"')?.strip_suffix('"'));
            Input::Command(Command::System(quoted.unwrap_or(text).to_owned()))
        }
        ("parameter", _) => match value.split_once(char::is_whitespace) {
            Some((name, value)) => Input::Command(Command::Parameter {
                name: name.to_owned(),
                value: value.trim().to_owned(),
            }),
            None => Input::Nothing(Some(format!(
                "/set parameter needs a name and a value; names: {}",
                Parameters::NAMES.join(", ")
            ))),
        },
        ("verbose", "") => switch(Switch::Verbose, true),
        ("quiet", "") => switch(Switch::Verbose, false),
        ("wordwrap", "") => switch(Switch::WordWrap, true),
        ("nowordwrap", "") => switch(Switch::WordWrap, false),
        ("history", "") => switch(Switch::History, true),
        ("nohistory", "") => switch(Switch::History, false),
        ("think", "") => switch(Switch::Think, true),
        ("nothink", "") => switch(Switch::Think, false),
        ("format", "json") => Input::Command(Command::JsonFormat(true)),
        ("noformat", "") => Input::Command(Command::JsonFormat(false)),
        _ => Input::Command(Command::Help(Help::Set)),
    }
}

/// The quotes around a text of several lines.
pub const QUOTES: &str = "\"\"\"";

impl Help {
    /// The text.
    pub fn text(self) -> &'static str {
        match self {
            Self::All => {
                "\
/set ...        settings; /? set lists them
/show ...       what there is to know; /? show lists it
/clear          forget the conversation; system prompt and parameters stay
/regen          answer the last message again, with another seed
/undo           take the last message and its answer back
/read FILE      the text of a file goes in front of the next message
/save FILE      write the conversation to a file
/load FILE      go on with a saved conversation
/bye            end, as /exit, /quit and Ctrl+D do
/?              this list

\"\"\" begins and ends a message of several lines; a \\ at the end of a line goes on with it.
Ctrl+C ends an answer. A space in front of a / makes the line a message.
"
            }
            Self::Set => {
                "\
/set system TEXT            the system prompt; \"\"\" around several lines
/set parameter NAME VALUE   seed, num_predict, top_k, top_p, min_p, temperature, repeat_penalty,
                            repeat_last_n, presence_penalty, frequency_penalty, stop
/set verbose | quiet        times after each answer
/set wordwrap | nowordwrap  break lines between words
/set history | nohistory    keep what is typed for the next time
/set think | nothink        reason before an answer, if the model's template has a switch for it
/set format json | noformat answers are JSON
"
            }
            Self::Show => {
                "\
/show info         the model
/show parameters   sampling
/show system       the system prompt
/show template     the chat template
/show messages     the conversation
"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let message = |text: &str| Input::Message(text.to_owned());
        let command = Input::Command;
        let parameter = |name: &str, value: &str| {
            command(Command::Parameter { name: name.to_owned(), value: value.to_owned() })
        };
        for (text, expected) in [
            ("hello", message("hello")),
            (" /etc", message("/etc")),
            ("  /etc", message("  /etc")),
            ("a /bye", message("a /bye")),
            ("/etc is\na folder", message("/etc is\na folder")),
            (" \t", Input::Nothing(None)),
            ("/bye ", command(Command::End)),
            ("/set system  \"Be kind.\"", command(Command::System("Be kind.".to_owned()))),
            ("/set system \"\"\"a\nb\"\"\"", command(Command::System("a\nb".to_owned()))),
            ("/set parameter stop  A B ", parameter("stop", "A B")),
            ("/set format json", command(Command::JsonFormat(true))),
            ("/set nothink", command(Command::Switch(Switch::Think, false))),
            ("/set frobnicate", command(Command::Help(Help::Set))),
            ("/show", command(Command::Help(Help::Show))),
            ("/? /set", command(Command::Help(Help::Set))),
            ("/save  my file.json", command(Command::Save("my file.json".to_owned()))),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
        for text in ["/byebye", "/clear all", "/read", "/set system", "/set parameter seed"] {
            assert!(matches!(read(text), Input::Nothing(Some(_))), "{text}");
        }
    }
}
