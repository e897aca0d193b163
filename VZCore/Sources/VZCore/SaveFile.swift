import Darwin
import Foundation

/// A saved state on its way to its path: it appears there whole or not at all.
struct SaveFile {
    /// Where the framework writes.
    let partial: URL
    private let path: String

    init(_ path: String) {
        self.path = path
        partial = URL(fileURLWithPath: path + ".partial")
    }

    /// After the framework wrote it or failed to: puts the whole file in its place, closed to others (it holds the
    /// guest's memory), or removes what there is of it.
    func finish(_ written: Result<Void, VZFailure>) -> Result<Void, VZFailure> {
        let result = written.flatMap { publish() }
        if case .failure = result { discard() }
        return result
    }

    private func publish() -> Result<Void, VZFailure> {
        guard chmod(partial.path, 0o600) == 0, rename(partial.path, path) == 0 else {
            return .failure(VZFailure(errno: errno, doing: "putting a saved state in its place, \(path)"))
        }
        return .success(())
    }

    /// Removes what was written, now or by a process that died.
    func discard() { unlink(partial.path) }
}
