import AppKit
import Foundation
import StandInDarwin
import Testing
import vmnet

@testable @_spi(StandIn) import Virtualization

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite struct NetworkTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    /// A network, which the caller releases.
    private func network() throws -> vmnet_network_ref {
        var status = vmnet_return_t.VMNET_FAILURE
        let configuration = try #require(vmnet_network_configuration_create(.VMNET_SHARED_MODE, &status))
        #expect(status == .VMNET_SUCCESS)
        defer { release(configuration) }
        return try #require(vmnet_network_create(configuration, &status))
    }

    private func release(_ reference: OpaquePointer) {
        Unmanaged<AnyObject>.fromOpaque(UnsafeRawPointer(reference)).release()
    }

    private func subnet(_ network: vmnet_network_ref) -> String {
        var (address, mask) = (in_addr(), in_addr())
        vmnet_network_get_ipv4_subnet(network, &address, &mask)
        #expect(String(cString: inet_ntoa(mask)) == "255.255.255.0")
        return String(cString: inet_ntoa(address))
    }

    @Test func every_network_has_a_different_subnet() throws {
        let networks = try (0..<5).map { _ in try network() }
        let subnets = networks.map(subnet)
        #expect(Set(subnets).count == 5)
        #expect(subnets.allSatisfy { $0.hasPrefix("192.168.") && $0.hasSuffix(".0") })
        for network in networks { release(network) }
    }

    @Test func an_attachment_keeps_its_network_and_lets_it_go() throws {
        var attachment: VZVmnetNetworkDeviceAttachment?
        weak var object: AnyObject?
        do {
            let network = try network()
            object = Unmanaged<AnyObject>.fromOpaque(UnsafeRawPointer(network)).takeUnretainedValue()
            attachment = VZVmnetNetworkDeviceAttachment(network: network)
            #expect(attachment?.network == network)
            release(network)
        }
        #expect(object != nil)
        attachment = nil
        #expect(object == nil)
    }

    @Test func a_bridge_to_nowhere_is_refused() {
        var status = vmnet_return_t.VMNET_SUCCESS
        #expect(vmnet_network_configuration_create(.VMNET_BRIDGED_MODE, &status) == nil)
        #expect(status == .VMNET_INVALID_ARGUMENT)
    }

    @Test func a_machine_runs_on_such_a_network() async throws {
        let network = try network()
        defer { release(network) }
        let configuration = try workshop.mac()
        configuration.networkDevices.first?.attachment = VZVmnetNetworkDeviceAttachment(network: network)
        let rig = try Rig(configuration)
        try await rig.start()
        #expect(rig.look { $0.networkDevices.first?.attachment is VZVmnetNetworkDeviceAttachment })
    }

    @Test func a_balloon_keeps_within_the_machines_memory() throws {
        let configuration = try workshop.linux()
        configuration.memoryBalloonDevices = [VZVirtioTraditionalMemoryBalloonDeviceConfiguration()]
        let rig = try Rig(configuration)
        rig.look { vm in
            guard let balloon = vm.memoryBalloonDevices.first as? VZVirtioTraditionalMemoryBalloonDevice
            else {
                Issue.record("there is no balloon")
                return
            }
            #expect(balloon.targetVirtualMachineMemorySize == 512 << 20)
            balloon.targetVirtualMachineMemorySize = 300 << 20 + 5
            #expect(balloon.targetVirtualMachineMemorySize == 300 << 20)
            balloon.targetVirtualMachineMemorySize = 1 << 40
            #expect(balloon.targetVirtualMachineMemorySize == 512 << 20)
            balloon.targetVirtualMachineMemorySize = 0
            #expect(balloon.targetVirtualMachineMemorySize == 128 << 20)
        }
    }
}

// swift-format-ignore: AlwaysUseLowerCamelCase
@MainActor
@Suite struct WindowTests {
    private final class Watcher: NSObject, NSWindowDelegate {
        var closed = 0
        var mayClose = false
        func windowShouldClose(_ sender: NSWindow) -> Bool { mayClose }
        func windowWillClose(_ notification: Notification) { closed += 1 }
    }

    @Test func a_window_shows_a_machine_and_closes_when_its_delegate_lets_it() throws {
        let window = NSWindow(
            contentRect: NSRect(x: 0, y: 0, width: 640, height: 400), styleMask: [.titled, .closable],
            backing: .buffered, defer: false)
        let (watcher, workshop) = (Watcher(), try TestDirectory())
        window.delegate = watcher
        let view = VZVirtualMachineView()
        view.virtualMachine = VZVirtualMachine(configuration: try workshop.linux())
        view.capturesSystemKeys = true
        window.contentView = view
        #expect(!window.isVisible)
        window.makeKeyAndOrderFront(nil)
        #expect(window.isVisible)
        window.performClose(nil)
        #expect(window.isVisible && watcher.closed == 0)
        watcher.mayClose = true
        window.performClose(nil)
        #expect(!window.isVisible && watcher.closed == 1)
        window.close()
        #expect(watcher.closed == 1)
    }
}
