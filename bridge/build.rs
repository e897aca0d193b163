//! Builds VZCore and links it in.
//!
//! | target, host | feature | what happens |
//! |---|---|---|
//! | macOS on macOS | any | glue, `swift build`, Xcode's runtime |
//! | Linux on Linux | swift | glue, `swift build` against the stand-in, Swift's runtime linked statically |
//! | macOS on Linux | any | type-checks only; with SHOESVZ_MACOS_LINK_CHECK=1 C stand-ins make it link (`make macos-check`) |
//! | other | | every call fails with "unsupported" |

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn main() {
    println!("cargo:rustc-check-cfg=cfg(vz)");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SHOESVZ_MACOS_LINK_CHECK");
    let root = var("CARGO_MANIFEST_DIR").join("..");
    let root = root.canonicalize().unwrap_or(root);
    let os = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let with_swift = env::var_os("CARGO_FEATURE_SWIFT").is_some();
    match (os.as_str(), env::consts::OS) {
        ("macos", "macos") => {
            println!("cargo:rustc-cfg=vz");
            let built = swift_build(&root, &Toolchain::find(&root), &[]);
            link_macos(&built);
        }
        ("macos", _) => {
            println!("cargo:rustc-cfg=vz");
            println!("cargo:rerun-if-changed=src/ffi.rs");
            if env::var_os("SHOESVZ_MACOS_LINK_CHECK").is_some() {
                link_check();
            } else {
                println!(
                    "cargo:warning=VZCore's Swift cannot be built for macOS here, so this will not link; \
                     `make macos-check` links against C stand-ins"
                );
            }
        }
        ("linux", "linux") if with_swift => {
            println!("cargo:rustc-cfg=vz");
            let toolchain = Toolchain::find(&root);
            let built = swift_build(&root, &toolchain, &["--static-swift-stdlib"]);
            link_linux(&toolchain, &built);
        }
        (_, _) if with_swift => {
            panic!(
                "the feature \"swift\" is for builds on and for Linux; builds on macOS always contain VZCore"
            )
        }
        _ => {}
    }
}

fn var(name: &str) -> PathBuf {
    PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")))
}

/// A Swift toolchain.
struct Toolchain {
    /// The script that runs a command with Swift in its PATH.
    wrapper: PathBuf,
    /// The toolchain's root directory in this file system.
    prefix: PathBuf,
}

impl Toolchain {
    fn find(root: &Path) -> Self {
        println!("cargo:rerun-if-env-changed=PATH");
        println!("cargo:rerun-if-env-changed=SHOESVZ_SWIFT_ROOT");
        let dev = root.join("scripts");
        let here =
            env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|p| p.join("swift").is_file());
        let prefix = if here {
            PathBuf::from("/")
        } else {
            let place = format!(". '{}'; printf %s \"$swift_root\"", dev.join("swift-place.sh").display());
            let output =
                run(Command::new("bash").args(["-c", &place]), "finding the toolchain of setup-swift");
            PathBuf::from(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        Self { wrapper: dev.join("with-swift"), prefix }
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(&self.wrapper);
        command.arg(tool);
        command
    }

    /// The toolchain's `usr/lib/swift`, in this file system.
    fn resources(&self) -> PathBuf {
        let output = run(self.command("swift").arg("-print-target-info"), "reading Swift's paths");
        let info: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("`swift -print-target-info`: {e}"));
        let path = info["paths"]["runtimeResourcePath"].as_str();
        let path = path.unwrap_or_else(|| panic!("`swift -print-target-info` names no runtimeResourcePath"));
        self.prefix.join(path.trim_start_matches('/'))
    }
}

fn run(command: &mut Command, what: &str) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{what}: {command:?}: {e}"));
    if !output.status.success() {
        panic!(
            "{what}: {command:?} ended with {}; without Swift build without the feature \"swift\", or run \
             `make setup-swift`\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    output
}

/// Generates the glue and builds the package; returns the directory with `libVZBridge.a`.
fn swift_build(root: &Path, toolchain: &Toolchain, more: &[&str]) -> PathBuf {
    glue(&root.join("bridge/swift"));
    println!("cargo:rerun-if-changed={}", root.join("Package.swift").display());
    println!("cargo:rerun-if-changed={}", root.join("VZCore/Sources").display());
    println!("cargo:rerun-if-changed={}", root.join("scripts/with-swift").display());

    let config = if env::var("PROFILE").as_deref() == Ok("release") { "release" } else { "debug" };
    // target/<profile>/build/<this crate>/out: one scratch directory for all of a profile's variants of this crate.
    let out = var("OUT_DIR");
    let profile = out.ancestors().nth(3).unwrap_or(&out);
    let scratch = profile.join("swift-build");
    let built = scratch.join(config);
    // SwiftPM adds to an archive: the object of a source file that was renamed would stay in it, and its symbols twice.
    match fs::remove_file(built.join("libVZBridge.a")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("removing the old libVZBridge.a: {e}"),
        _ => {}
    }
    let mut build = toolchain.command("swift");
    build
        .current_dir(root)
        .args(["build", "-c", config, "--product", "VZBridge", "--scratch-path"])
        .arg(&scratch)
        .args(more);
    run(&mut build, "building VZCore");
    println!("cargo:rustc-link-search=native={}", built.display());
    println!("cargo:rustc-link-lib=static:-bundle=VZBridge");
    built
}

/// Writes swift-bridge's generated code into the Swift package.
fn glue(swift: &Path) {
    println!("cargo:rerun-if-changed=src/ffi.rs");
    for entry in
        fs::read_dir(swift.join("VZBridge")).unwrap_or_else(|e| panic!("reading {swift:?}: {e}")).flatten()
    {
        if entry.path().extension().is_some_and(|x| x == "swift") {
            println!("cargo:rerun-if-changed={}", entry.path().display());
        }
    }
    let out = var("OUT_DIR");
    swift_bridge_build::parse_bridges(["src/ffi.rs"]).write_all_concatenated(&out, "vz_bridge");
    let read = |path: &str| {
        let path = out.join(path);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("reading swift-bridge's {path:?}: {e}"))
    };
    let include = swift.join("CVZBridge/include");
    write(&include.join("SwiftBridgeCore.h"), &read("SwiftBridgeCore.h"));
    write(&include.join("vz_bridge.h"), &read("vz_bridge/vz_bridge.h"));
    let generated = swift.join("VZBridge/generated");
    for name in ["SwiftBridgeCore.swift", "vz_bridge/vz_bridge.swift"] {
        // It conforms types of another module, which Swift 6 requires to be marked.
        let text = read(name)
            .replace("extension RustStr: Identifiable", "extension RustStr: @retroactive Identifiable")
            .replace("extension RustStr: Equatable", "extension RustStr: @retroactive Equatable");
        let file = generated.join(Path::new(name).file_name().unwrap_or_default());
        write(&file, &format!("import CVZBridge\n{text}"));
    }
}

/// Leaves an unchanged file alone: its modification time saves Swift a rebuild.
fn write(path: &Path, text: &str) {
    if fs::read_to_string(path).ok().as_deref() == Some(text) {
        return;
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).unwrap_or_else(|e| panic!("making {dir:?}: {e}"));
    }
    fs::write(path, text).unwrap_or_else(|e| panic!("writing {path:?}: {e}"));
}

fn link_macos(built: &Path) {
    // The objects name frameworks and runtime libraries (autolinking), but not their directories.
    let output = run(Command::new("xcrun").args(["--find", "swiftc"]), "finding Xcode's Swift");
    let swiftc = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if let Some(usr) = swiftc.ancestors().nth(2) {
        println!("cargo:rustc-link-search=native={}", usr.join("lib/swift/macosx").display());
    }
    println!("cargo:rustc-link-search=native=/usr/lib/swift");
    println!("cargo:rustc-link-lib=framework=Virtualization");
    assert!(built.join("libVZBridge.a").is_file(), "`swift build` left no libVZBridge.a in {built:?}");
}

fn link_linux(toolchain: &Toolchain, built: &Path) {
    let out = var("OUT_DIR");
    let lib = built.join("libVZBridge.a");
    let resources = toolchain.resources();
    let runtime = resources.with_file_name("swift_static").join("linux");
    assert!(
        runtime.is_dir(),
        "this Swift has no static runtime ({runtime:?}); install it, or another toolchain"
    );
    println!("cargo:rustc-link-search=native={}", runtime.display());

    // The libraries that swiftc would read from the objects' autolink entries.
    let mut extract = toolchain.command("swift-autolink-extract");
    let output =
        run(extract.arg(&lib).args(["-o", "/dev/stdout"]), "reading the libraries that VZCore needs");
    let mut libraries: Vec<&str> = Vec::new();
    let flags = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in flags.split_whitespace().filter_map(|flag| flag.strip_prefix("-l")) {
        if !libraries.contains(&name) {
            libraries.push(name);
        }
    }
    for name in libraries {
        let kind = if runtime.join(format!("lib{name}.a")).is_file() { "static:-bundle" } else { "dylib" };
        println!("cargo:rustc-link-lib={kind}={name}");
    }
    println!("cargo:rustc-link-lib=dylib=stdc++");
    println!("cargo:rerun-if-changed=src/glibc.c");
    cc::Build::new().file("src/glibc.c").compile("shoes_vz_glibc");

    // Registers this program's Swift metadata. An object file given to the linker directly would not reach the crates
    // that depend on this one; an archive does.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let archive = out.join("libswiftrt.a");
    drop(fs::remove_file(&archive));
    let object = runtime.join(&arch).join("swiftrt.o");
    run(Command::new("ar").arg("crs").arg(&archive).arg(&object), "packing swiftrt.o");
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static:+whole-archive,-bundle=swiftrt");
}

/// For every Swift function that Rust calls, a C function that prints a message and aborts. With these the rest of a
/// macOS program links on another system; it cannot run.
fn link_check() {
    let out = var("OUT_DIR");
    let ffi = fs::read_to_string("src/ffi.rs").unwrap_or_else(|e| panic!("reading src/ffi.rs: {e}"));
    let swift = ffi.split("extern \"Swift\"").nth(1).unwrap_or_default();
    let names: Vec<&str> = swift
        .lines()
        .filter_map(|line| line.trim().strip_prefix("fn "))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    assert!(!names.is_empty(), "src/ffi.rs declares no Swift function");
    let mut code = String::from(
        "#include <stdio.h>\n#include <stdlib.h>\n\
         static void none(const char *name) {\n    fprintf(stderr, \"%s: this program was linked on Linux to check \
         that it links; it has no VZCore\\n\", name);\n    abort();\n}\n",
    );
    for (i, name) in names.iter().enumerate() {
        code.push_str(&format!(
            "void shoes_vz_none_{i}(void) __asm__(\"___swift_bridge__${name}\");\n\
             void shoes_vz_none_{i}(void) {{ none(\"{name}\"); }}\n"
        ));
    }
    let file = out.join("link-check.c");
    fs::write(&file, code).unwrap_or_else(|e| panic!("writing {file:?}: {e}"));
    cc::Build::new().file(&file).compile("shoes_vz_link_check");
}
