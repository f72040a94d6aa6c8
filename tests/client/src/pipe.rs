//! Pipes, by which a new device is linked, as the relay sees them: bytes under a number.

use undertone_wire::{PipeId, PipePart, path};

use crate::{Api, Reply};

impl Api {
    /// What a new device has put into a pipe.
    pub async fn pipe_request(&self, pipe: PipeId, number: u64) -> Reply {
        self.get(&part(path::PIPE_REQUESTS, pipe, number)).await
    }

    /// Puts something into a pipe, as a new device does.
    pub async fn put_pipe_request(&self, pipe: PipeId, number: u64, content: &[u8]) -> Reply {
        self.post(&part(path::PIPE_REQUESTS, pipe, number), &PipePart { content: content.into() }).await
    }

    /// What a listed device has answered in a pipe.
    pub async fn pipe_answer(&self, pipe: PipeId, number: u64) -> Reply {
        self.get(&part(path::PIPE_ANSWERS, pipe, number)).await
    }

    /// Answers in a pipe, as a listed device does.
    pub async fn put_pipe_answer(&self, pipe: PipeId, number: u64, content: &[u8]) -> Reply {
        self.post(&part(path::PIPE_ANSWERS, pipe, number), &PipePart { content: content.into() }).await
    }
}

fn part(path: &str, pipe: PipeId, number: u64) -> String {
    format!("{}?number={number}", path::fill(path, pipe))
}
