//! Lets the binary find `liblacuna` and the standard library's shared object without cargo's `LD_LIBRARY_PATH`.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Where the binary is built: there lies `deps/`, which notebook cells link, even if the binary is copied elsewhere.
    if let Some(out) = env::var_os("OUT_DIR") {
        // OUT_DIR is PROFILE/build/lacuna-HASH/out.
        if let Some(profile) = std::path::Path::new(&out).ancestors().nth(3) {
            println!("cargo::rustc-env=LACUNA_BUILD_DIR={}", profile.display());
        }
    }
    if let Ok(target) = env::var("TARGET") {
        println!("cargo::rustc-env=LACUNA_TARGET={target}");
    }
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
