import Foundation
import Testing

@testable @_spi(StandIn) import Virtualization

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite(.timeLimit(.minutes(5))) struct SaveTests {
    private let workshop: TestDirectory
    private let state: URL

    init() throws {
        workshop = try TestDirectory()
        state = workshop.url("state")
    }

    private static let guest = """
        #!/bin/sh
        echo "pid $$ restored ${VZ_GUEST_RESTORED:-no}"
        exec sleep 1000

        """

    /// A machine saved into `state`, and stopped.
    private func saved(_ configuration: VZVirtualMachineConfiguration) async throws {
        let rig = try Rig(configuration)
        try await rig.start()
        try await rig.pause()
        try await rig.save(state)
        #expect(rig.state == .paused)
        try await rig.stop()
    }

    @Test func a_saved_state_is_restored_paused_and_goes_on_when_it_is_resumed() async throws {
        let configuration = try workshop.linux(Self.guest)
        try await saved(configuration)
        let rig = try Rig(configuration)
        try await rig.restore(state)
        #expect(rig.state == .paused)
        #expect(rig.look { $0.canResume && $0.canStop && !$0.canStart })
        try await rig.resume()
        let line = try #require(try await rig.console.line(after: "pid "))
        #expect(line.hasSuffix("restored 1"))
        try await rig.stop()
    }

    @Test func a_restored_guest_does_nothing_until_it_is_resumed() async throws {
        let configuration = try workshop.linux("#!/bin/sh\n: > \"$VZ_GUEST_DISK.ran\"\nexec sleep 1000\n")
        try await saved(configuration)
        let ran = workshop.url("linux.img.ran")
        // It may have been paused before its first line.
        if FileManager.default.fileExists(atPath: ran.path) { try FileManager.default.removeItem(at: ran) }
        let rig = try Rig(configuration)
        try await rig.restore(state)
        for _ in 0..<100 { #expect(!FileManager.default.fileExists(atPath: ran.path)) }
        try await rig.resume()
        try await until { FileManager.default.fileExists(atPath: ran.path) }
    }

    @Test func saving_leaves_the_machine_as_it_was() async throws {
        let rig = try Rig(workshop.linux(Self.guest))
        try await rig.start()
        try await rig.pause()
        try await rig.save(state)
        try await rig.save(state)
        try await rig.resume()
        #expect(try await rig.console.line()?.hasSuffix("restored no") == true)
        #expect(rig.state == .running)
    }

    @Test func a_state_is_restored_with_clones_of_its_files() async throws {
        let original = try workshop.linux(Self.guest)
        try await saved(original)
        let clone = try workshop.linux(Self.guest, name: "clone")
        clone.platform = original.platform
        let rig = try Rig(clone)
        try await rig.restore(state)
        #expect(rig.state == .paused)
    }

    @Test func a_state_of_another_configuration_is_refused() async throws {
        let original = try workshop.mac()
        try await saved(original)
        let changes: [(VZVirtualMachineConfiguration) throws -> Void] = [
            { $0.cpuCount = 3 },
            { $0.memorySize = 2 << 30 },
            { ($0.platform as? VZMacPlatformConfiguration)?.machineIdentifier = VZMacMachineIdentifier() },
            { ($0.platform as? VZMacPlatformConfiguration)?.hardwareModel = .make(minimumOS: [14, 0, 0]) },
            { $0.networkDevices.first?.macAddress = .randomLocallyAdministered() },
            { $0.networkDevices = [] },
            { $0.entropyDevices = [VZVirtioEntropyDeviceConfiguration()] },
            { $0.socketDevices = [VZVirtioSocketDeviceConfiguration()] },
            { $0.storageDevices = [try workshop.attached(workshop.disk("bigger.img", sectors: 32))] },
        ]
        for (index, change) in changes.enumerated() {
            let changed = try workshop.mac()
            changed.platform = try #require(original.platform as? VZMacPlatformConfiguration).copied()
            changed.networkDevices.first?.macAddress = try #require(original.networkDevices.first).macAddress
            try change(changed)
            let rig = try Rig(changed)
            let error = await failure { try await rig.restore(state) }
            #expect(isError(error, .restore), "change \(index)")
            #expect(
                error?.localizedDescription
                    == "The virtual machine failed to restore with error “invalid argument”.")
            #expect(rig.state == .stopped)
        }
        let same = try Rig(original)
        try await same.restore(state)
    }

    @Test func a_state_of_another_host_is_refused() async throws {
        let configuration = try workshop.linux()
        try await saved(configuration)
        var file = try SaveFile.read(state)
        file.host = "another"
        try file.write(to: state)
        let rig = try Rig(configuration)
        let error = await failure { try await rig.restore(state) }
        #expect(isError(error, .restore))
        #expect((error?.userInfo[NSUnderlyingErrorKey] as? NSError)?.code == Int(EACCES))
    }

    @Test func a_damaged_or_missing_state_is_refused_and_the_machine_can_be_started_instead() async throws {
        let configuration = try workshop.linux()
        try await saved(configuration)
        let whole = try Data(contentsOf: state)
        var damaged: [Data] = [Data(), whole.dropLast(), whole + [0], Data("SHOESVZ-STATE 1\n".utf8)]
        for index in whole.indices {
            var changed = whole
            changed[index] ^= 1
            damaged.append(changed)
        }
        let rig = try Rig(configuration)
        for content in damaged {
            try content.write(to: state)
            #expect(isError(await failure { try await rig.restore(state) }, .restore))
            #expect(rig.state == .stopped)
        }
        try FileManager.default.removeItem(at: state)
        let error = await failure { try await rig.restore(state) }
        #expect(isError(error, .restore))
        #expect((error?.userInfo[NSUnderlyingErrorKey] as? NSError)?.code == Int(ENOENT))
        try await rig.start()
    }

    @Test func a_state_that_cannot_be_written_leaves_the_machine_paused() async throws {
        let rig = try Rig(workshop.linux())
        try await rig.start()
        try await rig.pause()
        let error = await failure { try await rig.save(workshop.url("nowhere/state")) }
        #expect(isError(error, .save))
        #expect((error?.userInfo[NSUnderlyingErrorKey] as? NSError)?.code == Int(ENOENT))
        #expect(rig.state == .paused)
        try await rig.resume()
    }

    @Test func a_configuration_with_usb_devices_cannot_be_saved() async throws {
        let configuration = try workshop.mac()
        try configuration.validateSaveRestoreSupport()
        configuration.keyboards = [VZMacKeyboardConfiguration()]
        configuration.pointingDevices = [VZMacTrackpadConfiguration()]
        try configuration.validateSaveRestoreSupport()
        configuration.pointingDevices.append(VZUSBScreenCoordinatePointingDeviceConfiguration())
        #expect(throws: VZError.self) { try configuration.validateSaveRestoreSupport() }
        configuration.pointingDevices.removeLast()
        configuration.keyboards.append(VZUSBKeyboardConfiguration())
        #expect(throws: VZError.self) { try configuration.validateSaveRestoreSupport() }

        let rig = try Rig(configuration)
        try await rig.start()
        try await rig.pause()
        #expect(isError(await failure { try await rig.save(state) }, .save))
        #expect(rig.state == .paused)
    }
}

extension VZMacPlatformConfiguration {
    fileprivate func copied() -> VZMacPlatformConfiguration {
        let copy = VZMacPlatformConfiguration()
        copy.hardwareModel = hardwareModel
        copy.machineIdentifier = machineIdentifier
        copy.auxiliaryStorage = auxiliaryStorage
        return copy
    }
}
