import Dispatch
import Foundation

/// Where files are read and written that a machine's queue must not wait for. A separate queue, as it gets a thread
/// also when those of the global queues are all busy.
enum FileWork {
    static let queue = DispatchQueue(label: "Virtualization.files", attributes: .concurrent)
}

/// The files a machine keeps beside its disk.
enum BackingFile {
    static func create(_ content: Data, at url: URL, overwrite: Bool, what: String) throws {
        do {
            try create(content, at: url, mode: 0o600, overwrite: overwrite)
        } catch {
            throw VZError.configuration("Failed to create the \(what) \(url.path).", underlying: error)
        }
    }

    /// Throws the POSIX error.
    static func create(_ content: Data, at url: URL, mode: mode_t, overwrite: Bool = false) throws {
        let file = open(url.path, O_WRONLY | O_CREAT | O_CLOEXEC | (overwrite ? O_TRUNC : O_EXCL), mode)
        guard file >= 0 else { throw NSError.posix(errno) }
        defer { close(file) }
        try content.withUnsafeBytes { bytes in
            var done = 0
            while done < bytes.count {
                let count = write(file, bytes.baseAddress.map { $0 + done }, bytes.count - done)
                guard count >= 0 else { throw NSError.posix(errno) }
                done += count
            }
        }
    }
}
