//! Loads the kernels for the host and launches them, with memory that ends where its data ends.

#![allow(dead_code, reason = "each test file uses some of this")]

use crate::skip::skipped;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Orders in which the threads of a block run: the first that can, the last, and three at random.
pub(crate) const SEEDS: [u64; 5] = [0, 1, 2, 3, 4];

type Launch = extern "C" fn(*const c_char, u32, u32, u32, u64, u64, *mut *mut c_void, *mut c_char, u64) -> c_int;

/// The launch function of the emulation; `None` where there is no C++ compiler.
fn emulation() -> Option<Launch> {
    static LAUNCH: OnceLock<Option<Launch>> = OnceLock::new();
    *LAUNCH.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("kernels.so");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let mut command = Command::new(&compiler);
        // Products and sums are fused where a kernel says so, and only there.
        command
            .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-I"])
            .arg(root.join("src/cuda/kernels"));
        command.arg("-o").arg(&library).arg(root.join("tests/cuda/emulate.cpp"));
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("{compiler}: {error}"),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = CString::new(library.to_str().unwrap()).unwrap();
        // SAFETY: the library was made above, has no constructors, and stays loaded.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!handle.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
            let launch = libc::dlsym(handle, c"lacuna_launch".as_ptr());
            assert!(!launch.is_null());
            Some(std::mem::transmute::<*mut c_void, Launch>(launch))
        }
    })
}

/// True where kernels can be run; else the calling test is skipped.
#[track_caller]
pub(crate) fn available() -> bool {
    let available = emulation().is_some();
    if !available {
        skipped("a C++ compiler: c++, or the one that CXX names");
    }
    available
}

/// A launch of one kernel.
pub(crate) struct Kernel<'a> {
    pub(crate) name: &'a str,
    pub(crate) grid: (u32, u32),
    pub(crate) block: u32,
    pub(crate) shared: u64,
}

impl Kernel<'_> {
    /// Runs it, or says what the emulation found.
    pub(crate) fn try_run(&self, seed: u64, arguments: &[u64]) -> Result<(), String> {
        let launch = emulation().unwrap();
        let name = CString::new(self.name).unwrap();
        let mut cells = arguments.to_vec();
        let mut pointers: Vec<*mut c_void> = cells.iter_mut().map(|cell| std::ptr::from_mut(cell).cast()).collect();
        let mut error = [0u8; 512];
        let (pointers, to) = (pointers.as_mut_ptr(), error.as_mut_ptr().cast());
        let (grid, room) = (self.grid, error.len() as u64);
        match launch(name.as_ptr(), grid.0, grid.1, self.block, self.shared, seed, pointers, to, room) {
            0 => Ok(()),
            _ => Err(CStr::from_bytes_until_nul(&error).unwrap().to_str().unwrap().to_owned()),
        }
    }

    pub(crate) fn run(&self, seed: u64, arguments: &[u64]) {
        self.try_run(seed, arguments).unwrap();
    }
}

const PAGE: usize = 4096;
const FENCE: u8 = 0xa5;

/// Plain numbers at an address of their own: a page that cannot be touched follows within 16 bytes, and what lies around
/// the numbers is compared when they are read.
pub(crate) struct Buffer<T> {
    pages: *mut u8,
    bytes: usize,
    first: *mut u8,
    len: usize,
    plain: PhantomData<T>,
}

impl<T: Copy> Buffer<T> {
    fn map(len: usize, skew: usize) -> Self {
        let size = len * size_of::<T>();
        let bytes = (size + 32).next_multiple_of(PAGE) + PAGE;
        // SAFETY: a fresh mapping, of which the last page is closed.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let pages = libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            let pages = pages.cast::<u8>();
            pages.write_bytes(FENCE, bytes - PAGE);
            assert_eq!(libc::mprotect(pages.add(bytes - PAGE).cast(), PAGE, libc::PROT_NONE), 0);
            let first = pages.add(bytes - PAGE - size.next_multiple_of(16) - skew);
            Buffer { pages, bytes, first, len, plain: PhantomData }
        }
    }

    /// Holds `values`, 16-byte aligned.
    pub(crate) fn new(values: &[T]) -> Self {
        Self::skewed(values, 0)
    }

    /// Holds `values`, `skew` bytes off from where they would be aligned.
    pub(crate) fn skewed(values: &[T], skew: usize) -> Self {
        let buffer = Self::map(values.len(), skew);
        // SAFETY: there is room for them; a vector of bytes would be as plain.
        unsafe { buffer.first.copy_from(values.as_ptr().cast(), size_of_val(values)) };
        buffer
    }

    /// Room for `len` numbers, which hold what nobody would write.
    pub(crate) fn poisoned(len: usize, seed: u64) -> Self {
        let buffer = Self::map(len, 0);
        // SAFETY: there is room for them.
        unsafe { buffer.first.write_bytes(0xb1 ^ (seed as u8).wrapping_mul(37), len * size_of::<T>()) };
        buffer
    }

    pub(crate) fn arg(&self) -> u64 {
        self.first as u64
    }

    /// The numbers, if nothing around them was changed.
    pub(crate) fn read(&self) -> Vec<T> {
        let size = self.len * size_of::<T>();
        // SAFETY: all of it is mapped; any bits are a number.
        unsafe {
            let before = self.first.offset_from_unsigned(self.pages);
            let around = std::slice::from_raw_parts(self.pages, self.bytes - PAGE);
            let changed = |bytes: &[u8]| bytes.iter().any(|byte| *byte != FENCE);
            assert!(!changed(&around[..before]) && !changed(&around[before + size..]), "written beyond the buffer");
            (0..self.len).map(|i| self.first.cast::<T>().add(i).read_unaligned()).collect()
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, and nothing refers to it any more.
        unsafe { libc::munmap(self.pages.cast(), self.bytes) };
    }
}
