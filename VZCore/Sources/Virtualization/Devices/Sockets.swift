import Dispatch
import Foundation
import Glibc

/// Base of the socket devices of a configuration.
// objc: VZSocketDeviceConfiguration 11.0
open class VZSocketDeviceConfiguration: NSObject {
    override init() {}
}

/// A virtio socket device (vsock). A machine has at most one.
// objc: VZVirtioSocketDeviceConfiguration 11.0
open class VZVirtioSocketDeviceConfiguration: VZSocketDeviceConfiguration {
    // objc: VZVirtioSocketDeviceConfiguration init 11.0
    public override init() {}
}

/// Base of the socket devices of a machine that was made.
// objc: VZSocketDevice 11.0
open class VZSocketDevice: NSObject {
    override init() {}
}

/// The virtio socket device of a machine that was made. Only on the machine's queue.
// objc: VZVirtioSocketDevice 11.0
open class VZVirtioSocketDevice: VZSocketDevice {
    weak var core: MachineCore?
    private let affinity: QueueAffinity
    private var listeners: [UInt32: VZVirtioSocketListener] = [:]
    private var ports: [UInt32: HostPort] = [:]
    private var directory: GuestDirectory?
    private var lastPort: UInt32 = 1 << 16

    init(affinity: QueueAffinity) { self.affinity = affinity }

    deinit { shut() }

    /// Takes the guest's connections to a port of the host. One listener a port: a later one takes its place.
    // objc: VZVirtioSocketDevice setSocketListener:forPort: 11.0
    open func setSocketListener(_ listener: VZVirtioSocketListener, forPort port: UInt32) {
        affinity.check("VZVirtioSocketDevice.setSocketListener(_:forPort:)")
        listeners[port] = listener
        guard let directory, ports[port] == nil else { return }
        do {
            try listen(on: port, in: directory)
        } catch {
            Violations.report("port \(port) cannot be listened on: \(error)")
        }
    }

    /// Removes the port's listener: the guest's connections are refused.
    // objc: VZVirtioSocketDevice removeSocketListenerForPort: 11.0
    open func removeSocketListener(forPort port: UInt32) {
        affinity.check("VZVirtioSocketDevice.removeSocketListener(forPort:)")
        listeners[port] = nil
        ports.removeValue(forKey: port)?.close()
    }

    /// Connects to a port the guest listens on. Ends with ECONNRESET of NSPOSIXErrorDomain when nothing
    /// listens there, with `VZError.invalidVirtualMachineState` unless the machine is running.
    // objc: VZVirtioSocketDevice connectToPort:completionHandler: 11.0
    open func connect(
        toPort port: UInt32,
        completionHandler: @escaping (Result<VZVirtioSocketConnection, any Error>) -> Void
    ) {
        affinity.check("VZVirtioSocketDevice.connect(toPort:completionHandler:)")
        guard let core else { return }
        let faults = core.currentFaults
        if faults.hang.contains(.connect) { return }
        let result = Result { () throws -> VZVirtioSocketConnection in
            if let code = faults.fail[.connect] { throw VZError(askedFor: code, of: "connecting") }
            guard core.state == .running, let directory else {
                throw VZError(core.state, invalidFor: "connecting to a port")
            }
            guard let descriptor = try? UnixSocket.connect(to: directory.guestSocket(port)) else {
                throw NSError.posix(ECONNRESET)
            }
            return VZVirtioSocketConnection(
                descriptor: descriptor, sourcePort: nextPort(), destinationPort: port)
        }
        let answer = Transfer(value: { completionHandler(result) })
        affinity.queue.async { answer.value() }
    }

    /// The guest is about to run. Throws the POSIX error.
    func open(_ directory: GuestDirectory) throws {
        self.directory = directory
        for port in listeners.keys { try listen(on: port, in: directory) }
    }

    /// The guest has ended.
    func shut() {
        directory = nil
        for port in ports.values { port.close() }
        ports = [:]
    }

    private func listen(on port: UInt32, in directory: GuestDirectory) throws {
        ports[port] = try HostPort(at: directory.hostSocket(port), queue: affinity.queue) {
            [weak self] descriptor in
            guard let self else {
                close(descriptor)
                return
            }
            accept(descriptor, on: port)
        }
    }

    private func accept(_ descriptor: Int32, on port: UInt32) {
        let connection = VZVirtioSocketConnection(
            descriptor: descriptor, sourcePort: nextPort(), destinationPort: port)
        guard let listener = listeners[port],
            listener.delegate?.listener(listener, shouldAcceptNewConnection: connection, from: self) == true
        else { return connection.close() }
    }

    private func nextPort() -> UInt32 {
        lastPort = lastPort == .max ? 1 << 16 : lastPort + 1
        return lastPort
    }
}

/// A port of the host the guest can connect to.
private final class HostPort {
    private let source: any DispatchSourceRead

    /// Throws the POSIX error. `accept` is called on `queue`, and owns the descriptor.
    init(at path: String, queue: DispatchQueue, accept: @escaping (Int32) -> Void) throws {
        let listener = try UnixSocket.listen(at: path)
        source = DispatchSource.makeReadSource(fileDescriptor: listener, queue: queue)
        source.setEventHandler {
            while let descriptor = UnixSocket.accept(on: listener) { accept(descriptor) }
        }
        source.setCancelHandler { _ = Glibc.close(listener) }
        source.activate()
        self.path = path
    }

    private let path: String

    func close() {
        unlink(path)
        source.cancel()
    }
}

/// Takes the guest's connections to one port.
// objc: VZVirtioSocketListener 11.0
open class VZVirtioSocketListener: NSObject {
    // objc: VZVirtioSocketListener delegate 11.0
    open weak var delegate: (any VZVirtioSocketListenerDelegate)?
}

/// Decides about the guest's connections, on the machine's queue.
// objc: VZVirtioSocketListenerDelegate 11.0
public protocol VZVirtioSocketListenerDelegate: NSObjectProtocol {
    /// True to keep the connection; else it is closed. Optional.
    // objc: VZVirtioSocketListenerDelegate listener:shouldAcceptNewConnection:fromSocketDevice: 11.0
    func listener(
        _ listener: VZVirtioSocketListener, shouldAcceptNewConnection connection: VZVirtioSocketConnection,
        from socketDevice: VZVirtioSocketDevice
    ) -> Bool
}

extension VZVirtioSocketListenerDelegate {
    // objc: VZVirtioSocketListenerDelegate listener:shouldAcceptNewConnection:fromSocketDevice: 11.0
    public func listener(
        _ listener: VZVirtioSocketListener, shouldAcceptNewConnection connection: VZVirtioSocketConnection,
        from socketDevice: VZVirtioSocketDevice
    ) -> Bool {
        false
    }
}

/// One connection between host and guest. It owns its descriptor, and closes it when it is closed or
/// released.
// objc: VZVirtioSocketConnection 11.0
open class VZVirtioSocketConnection: NSObject {
    private var descriptor: Int32

    init(descriptor: Int32, sourcePort: UInt32, destinationPort: UInt32) {
        self.descriptor = descriptor
        self.sourcePort = sourcePort
        self.destinationPort = destinationPort
        StandIn.connections.increment()
    }

    deinit { close() }

    /// -1 once closed.
    // objc: VZVirtioSocketConnection fileDescriptor 11.0
    open var fileDescriptor: Int32 { descriptor }
    // objc: VZVirtioSocketConnection sourcePort 11.0
    public let sourcePort: UInt32
    // objc: VZVirtioSocketConnection destinationPort 11.0
    public let destinationPort: UInt32

    // objc: VZVirtioSocketConnection close 11.0
    open func close() {
        guard descriptor >= 0 else { return }
        Glibc.close(descriptor)
        descriptor = -1
        StandIn.connections.decrement()
    }
}
