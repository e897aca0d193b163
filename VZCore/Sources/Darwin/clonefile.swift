import CLinux

// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// Do not follow a symbolic link: clone the link.
// c: CLONE_NOFOLLOW 10.12
public let CLONE_NOFOLLOW: Int32 = 0x0001
// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// Do not copy the owner. Here a clone belongs to its maker anyway.
// c: CLONE_NOOWNERCOPY 10.13
public let CLONE_NOOWNERCOPY: Int32 = 0x0002

/// Makes `dst` a clone of `src`, as clonefile(2): a separate file with the same content, mode and times,
/// all at once or not at all. Blocks are shared where the file system can (FICLONE); elsewhere holes stay
/// holes and the rest is copied.
///
/// Returns 0, or -1 with errno: EEXIST when there is a `dst`, EXDEV when it would be on another volume,
/// EINVAL for unknown flags, ENOTSUP for anything but a file, directory or link; else what opening, writing or
/// linking says.
// c: clonefile 10.12
@discardableResult
public func clonefile(_ src: UnsafePointer<CChar>!, _ dst: UnsafePointer<CChar>!, _ flags: UInt32) -> Int32 {
    let known = UInt32(CLONE_NOFOLLOW | CLONE_NOOWNERCOPY)
    do throws(Failure) {
        guard flags & ~known == 0 else { throw Failure(EINVAL) }
        try clone(
            String(cString: src), to: String(cString: dst), following: flags & UInt32(CLONE_NOFOLLOW) == 0)
        return 0
    } catch {
        errno = error.number
        return -1
    }
}

private struct Failure: Error {
    let number: Int32
    init(_ number: Int32) { self.number = number }
}

/// What a system call returned, unless it failed.
@discardableResult
private func checked<Value: SignedInteger>(_ result: Value) throws(Failure) -> Value {
    guard result >= 0 else { throw Failure(errno) }
    return result
}

private func clone(_ source: String, to target: String, following: Bool) throws(Failure) {
    var status = stat()
    try checked(following ? stat(source, &status) : lstat(source, &status))
    var there = stat()
    if lstat(target, &there) == 0 { throw Failure(EEXIST) }
    var parent = stat()
    try checked(stat(directory(of: target), &parent))
    guard parent.st_dev == status.st_dev else { throw Failure(EXDEV) }

    switch status.st_mode & S_IFMT {
    case S_IFREG: try cloneFile(source, to: target, status)
    case S_IFLNK: try cloneLink(source, to: target)
    case S_IFDIR: try cloneDirectory(source, to: target, status)
    default: throw Failure(ENOTSUP)
    }
}

private func directory(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
}

private func cloneFile(_ source: String, to target: String, _ status: stat) throws(Failure) {
    let from = try checked(open(source, O_RDONLY | O_CLOEXEC))
    defer { close(from) }
    let partial = "\(directory(of: target))/.clone-\(String(UInt64.random(in: 0 ... .max), radix: 16))"
    let into = try checked(open(partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600))
    defer {
        close(into)
        unlink(partial)
    }
    if clinux_share_blocks(from, into) != 0 { try copyData(from, into, status.st_size) }
    // Without the bits that lend its owner's rights.
    try checked(fchmod(into, status.st_mode & 0o1777))
    try checked(futimens(into, [status.st_atim, status.st_mtim]))
    // Appears whole, and never in another file's place.
    try checked(link(partial, target))
}

private func copyData(_ from: Int32, _ into: Int32, _ size: off_t) throws(Failure) {
    try checked(ftruncate(into, size))
    var buffer = [UInt8](repeating: 0, count: 1 << 20)
    var offset: off_t = 0
    while offset < size {
        let start = off_t(clinux_next_data(from, Int64(offset)))
        // Only a hole is left.
        if start < 0, errno == ENXIO { return }
        try checked(start)
        let end = off_t(try checked(clinux_next_hole(from, Int64(start))))
        offset = start
        while offset < end {
            let count = try checked(pread(from, &buffer, min(buffer.count, Int(end - offset)), offset))
            // The source became shorter meanwhile.
            guard count > 0 else { return }
            var written = 0
            while written < count {
                let left = buffer[written..<count]
                written += try checked(
                    left.withUnsafeBytes { pwrite(into, $0.baseAddress, $0.count, offset + off_t(written)) })
            }
            offset += off_t(count)
        }
    }
}

private func cloneLink(_ source: String, to target: String) throws(Failure) {
    var text = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
    try checked(readlink(source, &text, Int(PATH_MAX)))
    try checked(symlink(text, target))
}

private func cloneDirectory(_ source: String, to target: String, _ status: stat) throws(Failure) {
    guard let list = opendir(source) else { throw Failure(errno) }
    defer { closedir(list) }
    try checked(mkdir(target, 0o700))
    do throws(Failure) {
        while let entry = readdir(list) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name == "." || name == ".." { continue }
            try clone("\(source)/\(name)", to: "\(target)/\(name)", following: false)
        }
        try checked(chmod(target, status.st_mode & 0o1777))
    } catch {
        remove(target)
        throw error
    }
}

/// Removes what was cloned so far.
private func remove(_ path: String) {
    if let list = opendir(path) {
        while let entry = readdir(list) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { remove("\(path)/\(name)") }
        }
        closedir(list)
        rmdir(path)
    } else {
        unlink(path)
    }
}
