# Sourced: where setup-swift puts its toolchain. Its name changes with what is unpacked there.
swift_root=${SHOESVZ_SWIFT_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/shoes-vz/swift-trixie-2}
