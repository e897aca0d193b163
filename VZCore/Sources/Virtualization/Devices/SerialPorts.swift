import Foundation

/// Base of the serial ports.
// objc: VZSerialPortConfiguration 11.0
open class VZSerialPortConfiguration: NSObject {
    override init() {}

    /// Nil: nothing reads, and what the guest says is lost.
    // objc: VZSerialPortConfiguration attachment 11.0
    open var attachment: VZSerialPortAttachment?
}

/// A serial port over virtio.
// objc: VZVirtioConsoleDeviceSerialPortConfiguration 11.0
open class VZVirtioConsoleDeviceSerialPortConfiguration: VZSerialPortConfiguration {
    // objc: VZVirtioConsoleDeviceSerialPortConfiguration init 11.0
    public override init() {}
}

/// Base of what a serial port is plugged into.
// objc: VZSerialPortAttachment 11.0
open class VZSerialPortAttachment: NSObject {
    override init() {}
}

/// Two file handles. In the stand-in they are the guest program's standard input, and its output and errors.
// objc: VZFileHandleSerialPortAttachment 11.0
open class VZFileHandleSerialPortAttachment: VZSerialPortAttachment {
    /// What the guest reads.
    // objc: VZFileHandleSerialPortAttachment fileHandleForReading 11.0
    public let fileHandleForReading: FileHandle?
    /// What the guest writes.
    // objc: VZFileHandleSerialPortAttachment fileHandleForWriting 11.0
    public let fileHandleForWriting: FileHandle?

    // objc: VZFileHandleSerialPortAttachment initWithFileHandleForReading:fileHandleForWriting: 11.0
    public init(fileHandleForReading: FileHandle?, fileHandleForWriting: FileHandle?) {
        self.fileHandleForReading = fileHandleForReading
        self.fileHandleForWriting = fileHandleForWriting
    }
}
