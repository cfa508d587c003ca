//! Lets the binary find `liblacuna` and the standard library's shared object without cargo's `LD_LIBRARY_PATH`; with the
//! feature `cuda`, compiles the kernels.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The targets of the kernels: machine code for Ampere and its successors up to Ada, and for Hopper; PTX, which the
/// driver compiles, for later cards.
const TARGETS: [&str; 2] = ["arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]"];
const KERNELS: &str = "src/cuda/kernels";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(problem) = kernels()
    {
        println!("cargo::error={}", problem.replace('\n', "\ncargo::error="));
    }
    // Where the binary is built: there lies `deps/`, which notebook cells link, even if the binary is copied elsewhere.
    if let Some(out) = env::var_os("OUT_DIR") {
        // OUT_DIR is PROFILE/build/lacuna-HASH/out.
        if let Some(profile) = Path::new(&out).ancestors().nth(3) {
            println!("cargo::rustc-env=LACUNA_BUILD_DIR={}", profile.display());
        }
    }
    if let Ok(target) = env::var("TARGET") {
        println!("cargo::rustc-env=LACUNA_TARGET={target}");
    }
    // Without it there is no shared library to find.
    if env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("prefer-dynamic")) {
        rpaths();
    }
}

fn rpaths() {
    let (origin, family) = match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => ("@loader_path", "unix"),
        Ok("windows") => return,
        _ => ("$ORIGIN", env::var("CARGO_CFG_TARGET_FAMILY").unwrap_or_default().leak() as &str),
    };
    if family != "unix" {
        return;
    }
    let mut directories = vec![origin.to_owned(), format!("{origin}/deps")];
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    match Command::new(rustc).args(["--print", "target-libdir"]).output() {
        Ok(output) if output.status.success() => {
            directories.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        _ => println!("cargo::warning=rustc does not say where its libraries are; run lacuna through cargo"),
    }
    for directory in directories {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{directory}");
    }
}

/// Compiles each `.cu` to one image that `cuModuleLoadData` takes, and lists them in `cuda_kernels.rs`.
fn kernels() -> Result<(), String> {
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // The folder, for files that come and go; what changes in one shows in its own time stamp.
    println!("cargo::rerun-if-changed={KERNELS}");
    let mut sources = Vec::new();
    for entry in fs::read_dir(KERNELS).map_err(|e| format!("{KERNELS}: {e}"))? {
        let path = entry.map_err(|e| format!("{KERNELS}: {e}"))?.path();
        println!("cargo::rerun-if-changed={}", path.display());
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();

    let nvcc = nvcc();
    let version = Command::new(&nvcc).arg("--version").output().map_err(|e| {
        format!(
            "{}: {e}. The feature `cuda` needs NVIDIA's compiler: set CUDA_HOME, put nvcc on the path, or run \
             scripts/cuda-build.sh, which fetches it",
            nvcc.display()
        )
    })?;
    // `Cuda compilation tools, release 13.0, V13.0.88`
    let version = String::from_utf8_lossy(&version.stdout);
    let version = version.split_once("release ").and_then(|(_, rest)| rest.split(',').next());
    let version = version.ok_or_else(|| format!("{} --version does not say its release", nvcc.display()))?;
    println!("cargo::rustc-env=LACUNA_CUDA_VERSION={version}");

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut list = String::from("pub(crate) static KERNELS: &[(&str, &[u8])] = &[\n");
    let mut running: Vec<(PathBuf, Child)> = Vec::new();
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).max(1);
    for source in sources {
        let stem = source.file_stem().and_then(|stem| stem.to_str()).ok_or("a kernel's file name is no text")?;
        let image = out.join(format!("{stem}.fatbin"));
        if running.len() == jobs {
            finish(running.remove(0))?;
        }
        running.push((source.clone(), compile(&nvcc, &source, &image)?));
        writeln!(list, "    ({stem:?}, include_bytes!({image:?})),").map_err(|e| e.to_string())?;
    }
    running.into_iter().try_for_each(finish)?;
    list.push_str("];\n");
    let path = out.join("cuda_kernels.rs");
    fs::write(&path, list).map_err(|e| format!("{}: {e}", path.display()))
}

fn compile(nvcc: &Path, source: &Path, image: &Path) -> Result<Child, String> {
    let mut command = Command::new(nvcc);
    command.arg("--fatbin").args(["--options-file", &format!("{KERNELS}/nvcc.options")]);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    if let Some(host) = env::var_os("NVCC_CCBIN") {
        command.arg("-ccbin").arg(host);
    }
    command.arg("-o").args([image, source]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|e| format!("{}: {e}", nvcc.display()))
}

fn finish((source, child): (PathBuf, Child)) -> Result<(), String> {
    let output = child.wait_with_output().map_err(|e| format!("nvcc {}: {e}", source.display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if output.status.success() {
        said.lines().for_each(|line| println!("cargo::warning={line}"));
        return Ok(());
    }
    Err(format!("{} does not compile:\n{}", source.display(), said.trim()))
}

/// The compiler, sought in the places where candle's build looks for it, too.
fn nvcc() -> PathBuf {
    let home = |variable| env::var_os(variable).map(|home| Path::new(&home).join("bin/nvcc"));
    let named = [env::var_os("NVCC").map(PathBuf::from), home("CUDA_HOME"), home("CUDA_PATH")];
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
    named.into_iter().flatten().chain(on_path).chain([usual]).find(|nvcc| nvcc.is_file()).unwrap_or("nvcc".into())
}
