//! The process that loads and runs compiled cells.
//!
//! evcxr writes a line for each cell to this process's standard input and reads lines from its standard output until one says
//! that the cell is over. Neither is left where a cell, or a program that it starts, could reach it: both move to descriptors of
//! their own. Cells read nothing from their standard input, and what they print goes through pipes to a thread that tells it to
//! the session as [`events`](super::events), repaired and in order.

use super::events::{Event, How, Message, Panic};
use super::output::Stream;
use super::places;
use super::printed::{Decoder, Piece};
use lacuna::display::runtime::{self, Host, Place};
use lacuna::sync::locked;
use std::env;
use std::ffi::{CString, c_void};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Set by evcxr for the child that runs cells.
const IS_RUNTIME: &str = "EVCXR_IS_RUNTIME";

/// evcxr's line for a cell to run: `LOAD_AND_RUN library function`.
const RUN: &str = "LOAD_AND_RUN ";
/// Lines that evcxr waits for.
const COMPLETE: &str = "EVCXR_EXECUTION_COMPLETE";
const PANICKED: &str = "EVCXR_PANIC_NOTIFICATION";
const LEFT_EARLY: &str = "EVCXR_ERROR_OCCURRED";
const RETYPED: &str = "EVCXR_VARIABLE_CHANGED_TYPE:";
const ASKS: &str = "EVCXR_INPUT_REQUEST";

/// Tells [`lacuna::progress`] that somebody reads its marks.
const MARKS_PROGRESS: &str = "LACUNA_MARK_PROGRESS";

/// Time after which text is told that may be the beginning of something.
const PAUSE_MS: libc::c_int = 20;

/// Longest wait for the output of a process that ends.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// Returns whether this is the process that runs cells.
pub(super) fn is_child() -> bool {
    env::var_os(IS_RUNTIME).is_some()
}

/// Runs cells until the session closes this process's standard input.
pub(super) fn run() -> ! {
    // SAFETY: the process has one thread so far.
    unsafe {
        // evcxr asks for backtraces; those of a cell show evcxr, not the cell. Who wants one says so.
        match env::var_os(places::BACKTRACE) {
            Some(value) => env::set_var("RUST_BACKTRACE", value),
            None => env::remove_var("RUST_BACKTRACE"),
        }
        // What a cell starts (cargo, lacuna) is no part of this session.
        for name in places::PRIVATE.into_iter().chain([IS_RUNTIME]) {
            env::remove_var(name);
        }
        env::set_var(MARKS_PROGRESS, "1");
    }
    // A group of its own, so that the runner can end what a cell has started together with it.
    // SAFETY: setpgid only moves this process.
    unsafe { libc::setpgid(0, 0) };
    #[cfg(target_os = "linux")]
    // A cell must not run on when the kernel was killed. The parent is its main thread.
    // SAFETY: prctl only sets a flag of this process.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)
    };
    let code = match serve() {
        Ok(()) => 0,
        Err(error) => {
            // The session shows it as the reason of the process's end.
            let _ = writeln!(io::stderr(), "the process that runs cells cannot go on: {error}");
            99
        }
    };
    std::process::exit(code)
}

fn serve() -> io::Result<()> {
    let commands = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let answers = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let events = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    replace(libc::STDIN_FILENO, &File::open("/dev/null")?.into())?;
    let (stdout, writer) = io::pipe()?;
    replace(libc::STDOUT_FILENO, &writer.into())?;
    let (stderr, writer) = io::pipe()?;
    replace(libc::STDERR_FILENO, &writer.into())?;
    let (woken, wake) = io::pipe()?;
    let process = Arc::new(Process {
        events: Mutex::new(events),
        answers: Mutex::new(answers),
        commands: Mutex::new(BufReader::new(commands)),
        cell: AtomicU64::new(NO_CELL),
        drains: Mutex::default(),
        drained: Condvar::new(),
        wake: Mutex::new(File::from(OwnedFd::from(wake))),
        state: Mutex::default(),
        main: std::thread::current().id(),
    });
    let theirs = process.clone();
    let streams = [(Stream::Stdout, stdout.into()), (Stream::Stderr, stderr.into())];
    std::thread::Builder::new().name("output".into()).spawn(move || theirs.forward(streams, woken.into()))?;
    let _ = PROCESS.set(process.clone());
    tell_before_the_end();
    let theirs = process.clone();
    std::panic::set_hook(Box::new(move |info| theirs.told_of_panic(info)));
    runtime::set_host(Box::new(Served(process.clone())));

    let mut store = std::ptr::null_mut();
    while let Some(line) = process.command()? {
        let Some((library, function)) = line.strip_prefix(RUN).and_then(|rest| rest.rsplit_once(' ')) else {
            return Err(io::Error::other(format!("`{line}` is no command")));
        };
        // SAFETY: evcxr has compiled the library, and passes between its functions what the one before returned.
        store = unsafe { process.run_cell(library, function, store) }?;
    }
    Ok(())
}

/// Makes `fd` another name of `file`.
fn replace(fd: libc::c_int, file: &OwnedFd) -> io::Result<()> {
    // SAFETY: both descriptors are open.
    if unsafe { libc::dup2(file.as_raw_fd(), fd) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Before the first cell.
const NO_CELL: u64 = u64::MAX;

static PROCESS: OnceLock<Arc<Process>> = OnceLock::new();

struct Process {
    events: Mutex<File>,
    /// To evcxr.
    answers: Mutex<File>,
    /// From evcxr.
    commands: Mutex<BufReader<File>>,
    /// The cell that runs or ran last.
    cell: AtomicU64,
    /// The number of times that the output thread was asked to report everything printed so far, and that it has done
    /// so.
    drains: Mutex<(u64, u64)>,
    drained: Condvar,
    wake: Mutex<File>,
    state: Mutex<State>,
    /// The thread that runs cells.
    main: ThreadId,
}

/// The state of the running cell: its number, whether it left early or panicked, and the variables that have another type now.
#[derive(Debug, Default)]
struct State {
    runs: Option<u64>,
    left: bool,
    panicked: bool,
    retyped: Vec<String>,
}

type CellFunction = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

impl Process {
    /// evcxr's next line.
    fn command(&self) -> io::Result<Option<String>> {
        let mut line = String::new();
        let length = locked(&self.commands).read_line(&mut line)?;
        Ok((length > 0).then(|| line.trim_end_matches('\n').to_owned()))
    }

    fn answer(&self, line: &str) -> io::Result<()> {
        locked(&self.answers).write_all(format!("{line}\n").as_bytes())
    }

    fn tell(&self, event: Event) {
        let cell = Some(self.cell.load(Ordering::Relaxed)).filter(|cell| *cell != NO_CELL);
        let line = Message { cell, event }.line();
        // When nobody reads, the session is gone.
        let _ = locked(&self.events).write_all(&line);
    }

    /// Runs a compiled cell, and tells evcxr and the session how it ended. Returns evcxr's store of variables.
    ///
    /// # Safety
    /// `library` is a cell compiled by evcxr that has `function`; `store` is what the cell before it returned.
    unsafe fn run_cell(&self, library: &str, function: &str, store: *mut c_void) -> io::Result<*mut c_void> {
        *locked(&self.state) = State::default();
        let function = load(library, function)?;
        // SAFETY: the caller's.
        let returned = catch_unwind(AssertUnwindSafe(|| unsafe { function(store) }));
        let state = std::mem::take(&mut *locked(&self.state));
        for name in &state.retyped {
            self.answer(&format!("{RETYPED}{name}"))?;
        }
        let how = match (&returned, state.left) {
            // A panic may also come from a variable of an earlier cell that is dropped when the cell is over.
            (Err(_), _) => How::Panicked,
            _ if state.panicked => How::Panicked,
            (Ok(_), true) => How::Early,
            (Ok(_), false) => How::Finished,
        };
        match how {
            How::Panicked => self.answer(PANICKED)?,
            // evcxr thinks of a `return` that the cell came to its end, and would miss the variables that it did not define.
            How::Early => self.answer(LEFT_EARLY)?,
            How::Finished => {}
        }
        self.drain();
        if state.runs.is_some() {
            self.tell(Event::Ends { how });
        }
        self.answer(COMPLETE)?;
        Ok(returned.unwrap_or(store))
    }

    /// Waits until everything that this thread has printed so far is told.
    fn drain(&self) {
        self.drain_within(Duration::from_secs(60));
    }

    fn drain_within(&self, limit: Duration) {
        // Rust's and C's own buffers.
        let _ = io::stdout().flush();
        // SAFETY: with a null pointer it flushes all streams.
        unsafe { libc::fflush(std::ptr::null_mut()) };
        let mut drains = locked(&self.drains);
        drains.0 += 1;
        let wanted = drains.0;
        if locked(&self.wake).write_all(b"!").is_err() {
            return;
        }
        let waiting = |drains: &mut (u64, u64)| drains.1 < wanted;
        drop(self.drained.wait_timeout_while(drains, limit, waiting).unwrap_or_else(PoisonError::into_inner));
    }

    /// Tells what is printed until the process ends.
    fn forward(&self, streams: [(Stream, OwnedFd); 2], woken: OwnedFd) {
        let mut wakes = File::from(woken);
        let mut streams = streams.map(|(stream, fd)| {
            // SAFETY: the descriptor is open.
            unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
            (stream, File::from(fd), Decoder::default())
        });
        let mut buffer = vec![0; 64 << 10];
        loop {
            let entry = |file: &File| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let mut entries = [entry(&streams[0].1), entry(&streams[1].1), entry(&wakes)];
            let timeout = if streams.iter().any(|(_, _, decoder)| decoder.holds()) { PAUSE_MS } else { -1 };
            // SAFETY: the array is as long as it says.
            let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) };
            if ready == 0 {
                for (stream, _, decoder) in &mut streams {
                    self.pieces(*stream, decoder.pause());
                }
            }
            for ((stream, file, decoder), entry) in streams.iter_mut().zip(&entries) {
                if entry.revents != 0
                    && let Ok(length) = file.read(&mut buffer)
                {
                    self.pieces(*stream, decoder.push(&buffer[..length]));
                }
            }
            if entries[2].revents != 0 {
                let wanted = locked(&self.drains).0;
                let _ = wakes.read(&mut buffer);
                for (stream, file, decoder) in &mut streams {
                    // What was in the pipe when the other thread asked; threads that print on must not keep it waiting.
                    let mut left = pending(file);
                    while left > 0
                        && let Ok(length @ 1..) = file.read(&mut buffer)
                    {
                        self.pieces(*stream, decoder.push(&buffer[..length]));
                        left = left.saturating_sub(length);
                    }
                    self.pieces(*stream, decoder.finish());
                }
                locked(&self.drains).1 = wanted;
                self.drained.notify_all();
            }
        }
    }

    fn pieces(&self, stream: Stream, pieces: Vec<Piece>) {
        for piece in pieces {
            self.tell(match piece {
                Piece::Text(text) => Event::Text { stream, text },
                Piece::Progress(line) => Event::Progress { line },
                Piece::Value(bundle) => Event::Shows { bundle, is_value: true },
            });
        }
    }

    fn told_of_panic(&self, info: &PanicHookInfo) {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let is_captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        let is_cell = thread.id() == self.main;
        if is_cell {
            // In its place among what the cell prints.
            self.drain();
        }
        self.tell(Event::Panic(Panic {
            thread: thread.name().unwrap_or("<unnamed>").to_owned(),
            is_cell,
            message: info.payload_as_str().unwrap_or("a value that is no text").to_owned(),
            file: info.location().map(|place| place.file().to_owned()).unwrap_or_default(),
            line: info.location().map_or(0, |place| place.line()),
            backtrace: is_captured.then(|| backtrace.to_string()),
        }));
    }
}

/// The function of a compiled cell. Its library is never unloaded: values of its types, and threads, may outlive the cell.
fn load(library: &str, function: &str) -> io::Result<CellFunction> {
    let text = |text: &str| CString::new(text).map_err(io::Error::other);
    let (path, name) = (text(library)?, text(function)?);
    // SAFETY: dlopen runs the library's constructors; it is compiled Rust without any. The strings end with a zero.
    let symbol = unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL);
        if handle.is_null() { handle } else { libc::dlsym(handle, name.as_ptr()) }
    };
    if symbol.is_null() {
        // SAFETY: after a failure dlerror is a string, or null if another thread asked first.
        let reason = unsafe { libc::dlerror() };
        let reason = match reason.is_null() {
            true => "unknown reason".into(),
            // SAFETY: as above.
            false => unsafe { std::ffi::CStr::from_ptr(reason) }.to_string_lossy(),
        };
        return Err(io::Error::other(format!("a compiled cell cannot be loaded: {reason}")));
    }
    // SAFETY: evcxr generates every such function with this signature.
    Ok(unsafe { std::mem::transmute::<*mut c_void, CellFunction>(symbol) })
}

/// Bytes that can be read from a pipe at once.
fn pending(file: &File) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes an integer.
    unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONREAD, &mut bytes) };
    bytes.max(0) as usize
}

/// This process for the library's functions.
struct Served(Arc<Process>);

impl Host for Served {
    fn begins(&self, number: u64) {
        locked(&self.0.state).runs = Some(number);
        self.0.cell.store(number, Ordering::Relaxed);
        self.0.tell(Event::Begins);
    }

    fn dropped(&self, number: u64) {
        let mut state = locked(&self.0.state);
        // That of an earlier cell has been replaced.
        if state.runs == Some(number) {
            state.left = true;
        }
    }

    fn panicked(&self) {
        locked(&self.0.state).panicked = true;
    }

    fn failed(&self, chain: &[String], line: u32) {
        self.0.drain();
        self.0.tell(Event::Failed { chain: chain.to_vec(), line });
    }

    fn retyped(&self, name: &str) {
        locked(&self.0.state).retyped.push(name.to_owned());
    }

    fn show(&self, bundle: &[(&str, &str)], place: Place) {
        self.0.drain();
        let bundle = bundle.iter().map(|(mime, content)| ((*mime).to_owned(), (*content).to_owned())).collect();
        self.0.tell(Event::Shows { bundle, is_value: place == Place::Value });
    }

    fn ask(&self, prompt: &str, is_secret: bool) -> Option<String> {
        self.0.drain();
        self.0.tell(Event::Asks { prompt: prompt.to_owned(), is_secret });
        self.0.answer(ASKS).ok()?;
        serde_json::from_str(&self.0.command().ok()??).ok()?
    }
}

/// Descriptors for signal handlers, which may not take locks.
static PIPES: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];
/// Handlers that were there before.
static BEFORE: Mutex<Vec<(libc::c_int, libc::sigaction)>> = Mutex::new(Vec::new());

/// Lets what was printed arrive before the process ends, by `exit` or by a fault.
fn tell_before_the_end() {
    extern "C" fn at_exit() {
        if let Some(process) = PROCESS.get() {
            process.drain_within(LAST_OUTPUT);
        }
    }
    // SAFETY: `at_exit` has no arguments and returns.
    unsafe { libc::atexit(at_exit) };
    for (fd, pipe) in [libc::STDOUT_FILENO, libc::STDERR_FILENO].into_iter().zip(&PIPES) {
        pipe.store(fd, Ordering::Relaxed);
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT] {
        let mut before = MaybeUninit::uninit();
        // SAFETY: the structures are as sigaction wants them; the handler only calls what a handler may call.
        unsafe {
            if libc::sigaction(signal, std::ptr::null(), before.as_mut_ptr()) != 0 {
                continue;
            }
            let before = before.assume_init();
            locked(&BEFORE).push((signal, before));
            let mut action = before;
            action.sa_sigaction = on_fault as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Waits until the output thread has read what was printed, then lets the handler before it go on: the standard library's, which tells
/// a stack overflow, or the system's, which ends the process.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let empty = || {
        PIPES.iter().all(|pipe| {
            let mut bytes: libc::c_int = 0;
            // SAFETY: FIONREAD writes an integer; on the writing end it tells what is not read yet.
            unsafe { libc::ioctl(pipe.load(Ordering::Relaxed), libc::FIONREAD, &mut bytes) };
            bytes <= 0
        })
    };
    let pause = || {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        // SAFETY: nanosleep may be called in a handler.
        unsafe { libc::nanosleep(&time, std::ptr::null_mut()) };
    };
    let deadline = Instant::now() + LAST_OUTPUT;
    while !empty() && Instant::now() < deadline {
        pause();
    }
    // What was read is not told yet.
    pause();
    // Nobody writes the list any more; a lock that is taken means a fault while it was written.
    let before = BEFORE.try_lock().ok().and_then(|before| before.iter().find(|(of, _)| *of == signal).map(|(_, a)| *a));
    match before {
        Some(before) if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN => {
            // SAFETY: it is the handler that was installed for this signal, with the arguments that it expects.
            unsafe {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(before.sa_sigaction);
                handler(signal, info, context);
            }
        }
        // The instruction is tried again, or the abort goes on, and the system ends the process.
        // SAFETY: signal only sets the handler.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}
