import Foundation

enum DiskImage {
    /// Throws `VZError.invalidDiskImage` unless the file can be a disk.
    static func check(_ url: URL, readOnly: Bool) throws {
        let file = open(url.path, (readOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC)
        guard file >= 0 else {
            throw VZError.disk(
                "The disk image \(url.path) cannot be opened.", underlying: NSError.posix(errno))
        }
        defer { close(file) }
        var status = stat()
        guard fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw VZError.disk("The disk image \(url.path) is not a file.")
        }
        guard status.st_size > 0, status.st_size % 512 == 0 else {
            throw VZError.disk("The disk image \(url.path) is not made of whole sectors of 512 bytes.")
        }
    }
}
