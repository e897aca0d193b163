import Foundation

/// The file a state is saved in: readable by this host only and by a machine with the same configuration
/// only, and not at all if a byte of it is changed.
///
/// `SHOESVZ-STATE 1\n`, the checksum of the rest as 16 hexadecimal digits, a line end, the host, a zero byte,
/// the configuration's fingerprint.
struct SaveFile: Equatable {
    var host: String
    var fingerprint: String

    /// The reason why a file cannot be restored, as the errno in the framework's text.
    struct Refusal: Error, Equatable { let number: Int32 }

    static func thisHost() -> String {
        for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
            if let identity = try? String(contentsOfFile: path, encoding: .utf8), !identity.isEmpty {
                return identity
            }
        }
        return ProcessInfo.processInfo.hostName
    }

    /// Throws the POSIX error. The file appears whole or not at all.
    func write(to url: URL) throws {
        let body = Data(host.utf8) + [0] + Data(fingerprint.utf8)
        let content = Self.head + Self.checksum(body) + body
        let partial = url.appendingPathExtension("partial-\(UUID().uuidString)")
        try BackingFile.create(content, at: partial, mode: 0o600)
        guard rename(partial.path, url.path) == 0 else {
            let failure = errno
            unlink(partial.path)
            throw NSError.posix(failure)
        }
    }

    /// Checks that the file is whole, of this host, and of a machine with that configuration.
    static func check(_ url: URL, fingerprint: String) throws(Refusal) {
        let file = try read(url)
        guard file.host == thisHost() else { throw Refusal(number: EACCES) }
        guard file.fingerprint == fingerprint else { throw Refusal(number: EINVAL) }
    }

    static func read(_ url: URL) throws(Refusal) -> SaveFile {
        guard access(url.path, R_OK) == 0 else { throw Refusal(number: errno) }
        guard let content = try? Data(contentsOf: url) else { throw Refusal(number: EIO) }
        let start = head.count + 17
        guard content.count > start, content.prefix(head.count) == head else { throw Refusal(number: EINVAL) }
        let body = content.dropFirst(start)
        guard content.dropFirst(head.count).prefix(17) == checksum(body),
            let middle = body.firstIndex(of: 0),
            let host = String(data: body[..<middle], encoding: .utf8),
            let fingerprint = String(data: body[body.index(after: middle)...], encoding: .utf8)
        else { throw Refusal(number: EINVAL) }
        return SaveFile(host: host, fingerprint: fingerprint)
    }

    private static let head = Data("SHOESVZ-STATE 1\n".utf8)

    /// FNV-1a of 64 bits, as 16 hexadecimal digits and a line end.
    private static func checksum(_ data: Data) -> Data {
        let hash = data.reduce(UInt64(0xcbf2_9ce4_8422_2325)) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01b3 }
        let digits = String(hash, radix: 16)
        return Data((String(repeating: "0", count: 16 - digits.count) + digits + "\n").utf8)
    }
}

extension VZError {
    /// Writes a save file. What the save ends with.
    static func saving(_ file: SaveFile, to url: URL) -> VZError? {
        do {
            try file.write(to: url)
            return nil
        } catch {
            return VZError(saving: "The save file \(url.path) cannot be written.", underlying: error)
        }
    }

    init(saving reason: String, underlying: any Error) {
        self.init(
            .save, failure: "An error occurred while saving the virtual machine.", reason: reason,
            underlying: underlying)
    }

    /// Checks a save file. What the restoration ends with, if it is none for that configuration.
    static func restoring(_ url: URL, _ fingerprint: String) -> VZError? {
        do throws(SaveFile.Refusal) {
            try SaveFile.check(url, fingerprint: fingerprint)
            return nil
        } catch {
            let description = String(cString: strerror(error.number)).lowercased()
            return VZError(
                .restore, failure: "An error occurred while restoring the virtual machine.",
                reason: "The virtual machine failed to restore with error “\(description)”.",
                underlying: NSError.posix(error.number))
        }
    }
}
