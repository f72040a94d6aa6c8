//! Where a chat is shown: on a terminal, above the line that is being typed; otherwise line by line on stdout.
//!
//! Invariant: the terminal is as it was before when the chat has closed the screen.

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustyline::{Config, Editor, ExternalPrinter, error::ReadlineError, history::MemHistory};
use tokio::sync::{mpsc, oneshot};

use super::input::{AHEAD, Line, Lines, read_stdin};
use crate::{
    error::Failure,
    output::{Output, people},
};

/// How long a line may take to be shown, and the prompt to go away.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);

type Prompt = Editor<(), MemHistory>;

/// Where a chat is shown.
pub(super) enum Screen {
    /// Stdout, line by line.
    Lines(Output),
    /// A terminal with a prompt.
    Terminal {
        /// Lines to be shown; the answer says that they were.
        show: mpsc::Sender<(String, oneshot::Sender<()>)>,
        /// Answers when the prompt is gone.
        gone: oneshot::Receiver<()>,
    },
}

/// Opens the screen that fits stdin and stdout, and reads what is typed or piped.
pub(super) fn open(output: Output, group: &str) -> (Lines, Screen) {
    let is_terminal = !output.is_json() && io::stdin().is_terminal() && io::stdout().is_terminal();
    let terminal = if is_terminal { open_terminal(group) } else { None };
    terminal.unwrap_or_else(|| (read_stdin(), Screen::Lines(output)))
}

/// `None` if this terminal can only do lines.
fn open_terminal(group: &str) -> Option<(Lines, Screen)> {
    let mut editor = Prompt::with_history(Config::default(), MemHistory::new()).ok()?;
    let printer = editor.create_external_printer().ok()?;
    let name: String = people::clean_line(group).chars().take(24).collect();
    let (typed, lines) = mpsc::channel(AHEAD);
    let (show, to_show) = mpsc::channel(AHEAD);
    let (prompt, gone) = oneshot::channel::<()>();
    thread::spawn(move || {
        read(editor, &format!("{name}> "), &typed);
        drop(prompt);
    });
    thread::spawn(move || print(printer, to_show));
    Some((lines, Screen::Terminal { show, gone }))
}

fn read(mut editor: Prompt, prompt: &str, lines: &mpsc::Sender<Line>) {
    loop {
        let line = match editor.readline(prompt) {
            Ok(line) if line.trim() == "/quit" => return,
            Ok(line) => {
                // A line that cannot be remembered is only not offered again.
                drop(editor.add_history_entry(line.as_str()));
                Line::Text(line)
            }
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Line::Stop,
            Err(_) => return,
        };
        let stop = line == Line::Stop;
        if lines.blocking_send(line).is_err() || stop {
            return;
        }
    }
}

fn print(mut printer: impl ExternalPrinter, mut lines: mpsc::Receiver<(String, oneshot::Sender<()>)>) {
    while let Some((line, shown)) = lines.blocking_recv() {
        if printer.print(format!("{line}\n")).is_err() {
            return;
        }
        // Whoever waited may have stopped waiting.
        let _ = shown.send(());
    }
}

impl Screen {
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// Shows a line. It is on the screen, or nobody looks at it, when this returns.
    pub(super) async fn print(&self, line: &str) -> Result<(), Failure> {
        match self {
            Self::Lines(output) => output.say(line),
            Self::Terminal { show, .. } => {
                let (shown, seen) = oneshot::channel();
                let printed = async {
                    show.send((line.to_owned(), shown)).await.map_err(|_| Failure::NobodyReads)?;
                    seen.await.map_err(|_| Failure::NobodyReads)
                };
                // A prompt that is just going away takes nothing any more; the history has it.
                tokio::time::timeout(SHOWN_WITHIN, printed).await.unwrap_or(Ok(()))
            }
        }
    }

    /// Takes the prompt away, if it is still there.
    pub(super) async fn close(&mut self) {
        let Self::Terminal { gone, .. } = self else { return };
        if gone.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            // The prompt reads in a thread that only a signal reaches; it then puts the terminal back in order.
            let _ = kill(Pid::this(), Signal::SIGINT);
            drop(tokio::time::timeout(SHOWN_WITHIN, gone).await);
        }
    }
}
