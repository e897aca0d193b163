import Foundation

/// Receives the guest's events. Every method is optional, and called on the virtual machine's queue.
// objc: VZVirtualMachineDelegate 11.0
public protocol VZVirtualMachineDelegate: NSObjectProtocol {
    /// The guest powered itself off; the machine is `.stopped`.
    // objc: VZVirtualMachineDelegate guestDidStopVirtualMachine: 11.0
    func guestDidStop(_ virtualMachine: VZVirtualMachine)
    /// The machine stopped because of an error; it is in `.error`.
    // objc: VZVirtualMachineDelegate virtualMachine:didStopWithError: 11.0
    func virtualMachine(_ virtualMachine: VZVirtualMachine, didStopWithError error: any Error)
    /// A network attachment was lost; the device's `attachment` is nil now.
    // objc: VZVirtualMachineDelegate virtualMachine:networkDevice:attachmentWasDisconnectedWithError: 12.0
    func virtualMachine(
        _ virtualMachine: VZVirtualMachine, networkDevice: VZNetworkDevice,
        attachmentWasDisconnectedWithError error: any Error)
}

// What is optional in Objective-C is a default here: Swift on Linux has no optional requirements.
extension VZVirtualMachineDelegate {
    // objc: VZVirtualMachineDelegate guestDidStopVirtualMachine: 11.0
    public func guestDidStop(_ virtualMachine: VZVirtualMachine) {}
    // objc: VZVirtualMachineDelegate virtualMachine:didStopWithError: 11.0
    public func virtualMachine(_ virtualMachine: VZVirtualMachine, didStopWithError error: any Error) {}
    // objc: VZVirtualMachineDelegate virtualMachine:networkDevice:attachmentWasDisconnectedWithError: 12.0
    public func virtualMachine(
        _ virtualMachine: VZVirtualMachine, networkDevice: VZNetworkDevice,
        attachmentWasDisconnectedWithError error: any Error
    ) {}
}
