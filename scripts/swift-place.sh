# Sourced: the directory of setup-swift's toolchain. Its name changes when its content does.
swift_root=${SHOESVZ_SWIFT_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/shoes-vz/swift-trixie-2}
