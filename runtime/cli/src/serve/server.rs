//! The HTTP thread: it accepts connections, serves them, and ends when it is told to.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};

use super::app::App;
use super::guard::MAX_HEAD;
use super::listen::{self, Listener};
use super::router::router;
use crate::output::note;

/// Time for the head of a request, and between two requests of a connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Headers of a request, at most.
const MAX_HEADERS: usize = 100;
/// Threads for reading requests.
const READERS: usize = 4;
/// Pause after the system has refused a connection.
const REFUSED: Duration = Duration::from_millis(100);
/// Time for answers to reach their clients after the engine has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Serves until a signal asks for the end and the texts that are being written have ended, or their
/// time has.
///
/// # Errors
/// Those of the system when the thread cannot begin.
pub fn serve(listener: Listener, app: Arc<App>) -> io::Result<()> {
    runtime()?.block_on(async move {
        let mut signals = Signals::new()?;
        let graceful = GracefulShutdown::new();
        let accepting = Accepting::new(listener, Arc::clone(&app))?;
        tokio::select! {
            () = accepting.run(&graceful) => {}
            signal = signals.next() => {
                if !app.has_model() {
                    // Nothing is served yet, and the engine does not listen while it loads.
                    std::process::exit(0);
                }
                note(format_args!("{signal}: no request is taken any more"));
            }
        }
        drop(accepting);
        app.begin_to_drain();
        let time = app.settings.drain + LAST_ANSWERS;
        tokio::select! {
            () = graceful.shutdown() => {}
            () = sleep(time) => {}
            signal = signals.next() => std::process::exit(128 + signal.number()),
        }
        Ok(())
    })
}

fn runtime() -> io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(READERS).build()
}

/// A signal that asks for the end.
#[derive(Clone, Copy, Debug)]
struct Signal {
    name: &'static str,
    number: i32,
}

impl Signal {
    fn number(self) -> i32 {
        self.number
    }
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal { name: "SIGINT", number: 2 },
            _ = self.terminate.recv() => Signal { name: "SIGTERM", number: 15 },
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Signal { name: "Ctrl+C", number: 2 }
    }
}

/// The socket that is listened at.
enum Socket {
    Tcp(tokio::net::TcpListener),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

/// What comes in at it.
enum Connection {
    Tcp(tokio::net::TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

impl Socket {
    async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                listen::prepare(&stream);
                Ok(Connection::Tcp(stream))
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                listen::prepare_unix(&stream);
                Ok(Connection::Unix(stream))
            }
        }
    }
}

/// The loop that takes connections.
struct Accepting {
    socket: Socket,
    app: Arc<App>,
    router: Router,
    connections: Arc<Semaphore>,
}

impl Accepting {
    fn new(listener: Listener, app: Arc<App>) -> io::Result<Self> {
        let socket = match listener {
            Listener::Tcp(listener, _) => Socket::Tcp(tokio::net::TcpListener::from_std(listener)?),
            #[cfg(unix)]
            Listener::Unix(listener, _) => {
                Socket::Unix(tokio::net::UnixListener::from_std(listener)?)
            }
        };
        let connections = Arc::new(Semaphore::new(app.settings.max_connections));
        Ok(Self { socket, router: router(Arc::clone(&app)), connections, app })
    }

    /// Accepts connections for ever, as many at once as are allowed.
    async fn run(&self, graceful: &GracefulShutdown) {
        let mut is_told = false;
        loop {
            let Ok(place) = Arc::clone(&self.connections).acquire_owned().await else { return };
            let connection = match self.socket.accept().await {
                Ok(connection) => connection,
                Err(error) => {
                    if !is_told {
                        note(format_args!("a connection was refused by the system: {error}"));
                        is_told = true;
                    }
                    sleep(REFUSED).await;
                    continue;
                }
            };
            let served = match connection {
                Connection::Tcp(stream) => self.connection(stream, graceful),
                #[cfg(unix)]
                Connection::Unix(stream) => self.connection(stream, graceful),
            };
            tokio::spawn(async move {
                served.await;
                drop(place);
            });
        }
    }

    fn connection<S>(
        &self,
        stream: S,
        graceful: &GracefulShutdown,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let timeout = self.app.settings.timeout;
        let stream = TokioIo::new(Patient { stream, timeout, waiting: None });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME.min(timeout))
            .max_headers(MAX_HEADERS)
            .title_case_headers(true)
            .max_buf_size(MAX_HEAD)
            .serve_connection(stream, TowerToHyperService::new(self.router.clone()));
        let watched = graceful.watch(connection);
        Box::pin(async move {
            // How a connection ends is its client's business.
            drop(watched.await);
        })
    }
}

/// A stream that fails when its reader has taken nothing for too long.
struct Patient<S> {
    stream: S,
    timeout: Duration,
    /// The end of patience, while nothing can be written.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// Passes on what a write came to, and counts the time while it waits.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let end = Instant::now() + self.timeout;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        match waiting.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
