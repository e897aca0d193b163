import Foundation

/// The guest's end of the serial port: copies of the attachment's descriptors, or /dev/null.
final class SerialPort: Sendable {
    let input: Descriptor
    let output: Descriptor

    /// Throws the POSIX error.
    init(_ attachment: VZFileHandleSerialPortAttachment?) throws {
        input = try Descriptor(copying: attachment?.fileHandleForReading)
        output = try Descriptor(copying: attachment?.fileHandleForWriting)
    }

    func close() {
        input.close()
        output.close()
    }
}

/// A descriptor that this object owns; closed once, at the latest when it is released.
final class Descriptor: Sendable {
    private let open: Lock<Int32>

    /// A copy of a file handle's; without one, /dev/null.
    init(copying handle: FileHandle?) throws {
        let number: Int32
        if let handle {
            number = fcntl(handle.fileDescriptor, F_DUPFD_CLOEXEC, 3)
        } else {
            number = Foundation.open("/dev/null", O_RDWR | O_CLOEXEC)
        }
        guard number >= 0 else { throw NSError.posix(errno) }
        open = Lock(number)
    }

    deinit { close() }

    /// -1 once closed.
    var number: Int32 { open.withLock { $0 } }

    func close() {
        open.withLock { number in
            if number >= 0 { Foundation.close(number) }
            number = -1
        }
    }
}
