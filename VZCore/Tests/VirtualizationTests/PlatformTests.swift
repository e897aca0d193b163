import Foundation
import StandInDarwin
import Testing

@testable @_spi(StandIn) import Virtualization

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite struct PlatformTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    @Test func a_hardware_model_from_a_mac_is_understood() throws {
        // The form of a real Mac's, as templates keep it.
        let real = """
            <?xml version="1.0" encoding="UTF-8"?>
            <plist version="1.0"><dict><key>DataRepresentationVersion</key><integer>1</integer>
            <key>MinimumSupportedOS</key><array><integer>13</integer><integer>0</integer><integer>0</integer></array>
            <key>PlatformVersion</key><integer>2</integer></dict></plist>
            """
        let model = try #require(VZMacHardwareModel(dataRepresentation: Data(real.utf8)))
        #expect(model.isSupported)
        #expect(model.dataRepresentation == Data(real.utf8))
    }

    @Test func what_is_no_hardware_model_is_none() {
        for data in [Data(), Data("x".utf8), PropertyList.data(["PlatformVersion": .number(2)])] {
            #expect(VZMacHardwareModel(dataRepresentation: data) == nil)
        }
    }

    @Test func a_model_is_supported_from_its_macos_on() {
        #expect(VZMacHardwareModel.make(minimumOS: [26, 0, 0]).isSupported)
        #expect(!VZMacHardwareModel.make(minimumOS: [26, 0, 1]).isSupported)
        #expect(!VZMacPlatformConfiguration().hardwareModel.isSupported)
    }

    @Test func every_machine_is_another_and_stays_the_same() throws {
        let one = VZMacMachineIdentifier()
        #expect(one.dataRepresentation != VZMacMachineIdentifier().dataRepresentation)
        let again = try #require(VZMacMachineIdentifier(dataRepresentation: one.dataRepresentation))
        #expect(again.dataRepresentation == one.dataRepresentation)
        #expect(VZMacMachineIdentifier(dataRepresentation: Data("x".utf8)) == nil)

        let other = VZGenericMachineIdentifier()
        #expect(other.dataRepresentation != VZGenericMachineIdentifier().dataRepresentation)
        #expect(VZGenericMachineIdentifier(dataRepresentation: other.dataRepresentation) != nil)
        #expect(VZGenericMachineIdentifier(dataRepresentation: one.dataRepresentation) == nil)
    }

    @Test func an_auxiliary_storage_is_made_for_a_model_and_replaces_nothing_by_default() throws {
        let url = workshop.url("aux")
        let model = VZMacHardwareModel.make(minimumOS: [13, 0, 0])
        let storage = try VZMacAuxiliaryStorage(creatingStorageAt: url, hardwareModel: model)
        #expect(storage.url == url)
        #expect(StandInFile(url)?.hardwareModel == model.dataRepresentation)
        #expect(throws: VZError.self) {
            _ = try VZMacAuxiliaryStorage(creatingStorageAt: url, hardwareModel: model)
        }
        let newer = VZMacHardwareModel.make(minimumOS: [14, 0, 0])
        _ = try VZMacAuxiliaryStorage(creatingStorageAt: url, hardwareModel: newer, options: .allowOverwrite)
        #expect(StandInFile(url)?.hardwareModel == newer.dataRepresentation)
    }

    @Test func a_variable_store_is_made_likewise() throws {
        let url = workshop.url("efi")
        #expect(try VZEFIVariableStore(creatingVariableStoreAt: url).url == url)
        #expect(throws: VZError.self) { _ = try VZEFIVariableStore(creatingVariableStoreAt: url) }
        _ = try VZEFIVariableStore(creatingVariableStoreAt: url, options: .allowOverwrite)
    }
}

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite struct ConfigurationTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    /// What is wrong with a configuration, if anything.
    private func mistake(_ configuration: VZVirtualMachineConfiguration) -> String? {
        do {
            try configuration.validate()
            return nil
        } catch {
            #expect(isError(error as NSError, .invalidVirtualMachineConfiguration))
            return error.localizedDescription
        }
    }

    private typealias Change = (VZVirtualMachineConfiguration) throws -> Void

    private func expect(
        _ reason: String, _ kind: () throws -> VZVirtualMachineConfiguration, _ change: Change
    )
        throws
    {
        let configuration = try kind()
        #expect(mistake(configuration) == nil)
        try change(configuration)
        let found = mistake(configuration)
        #expect(found?.contains(reason) == true, "found: \(found ?? "nothing")")
    }

    private func linux() throws -> VZVirtualMachineConfiguration { try workshop.linux() }
    private func mac() throws -> VZVirtualMachineConfiguration { try workshop.mac() }
    private func platform(_ configuration: VZVirtualMachineConfiguration) throws -> VZMacPlatformConfiguration
    {
        try #require(configuration.platform as? VZMacPlatformConfiguration)
    }

    @Test func the_least_and_the_most_are_allowed_and_no_less_and_no_more() throws {
        let kind = VZVirtualMachineConfiguration.self
        let configuration = try linux()
        for cpus in [kind.minimumAllowedCPUCount, kind.maximumAllowedCPUCount] {
            configuration.cpuCount = cpus
            #expect(mistake(configuration) == nil)
        }
        for memory in [kind.minimumAllowedMemorySize, kind.maximumAllowedMemorySize] {
            configuration.memorySize = memory
            #expect(mistake(configuration) == nil)
        }
        try expect("CPUs", linux) { $0.cpuCount = kind.maximumAllowedCPUCount + 1 }
        try expect("CPUs", linux) { $0.cpuCount = kind.minimumAllowedCPUCount - 1 }
        try expect("memory", linux) { $0.memorySize = kind.maximumAllowedMemorySize + 1 << 20 }
        try expect("memory", linux) { $0.memorySize = kind.minimumAllowedMemorySize - 1 << 20 }
        try expect("multiple of 1 MiB", linux) { $0.memorySize += 512 }
    }

    @Test func the_boot_loader_fits_the_platform() throws {
        try expect("The boot loader is not set", linux) { $0.bootLoader = nil }
        try expect("needs a VZMacPlatformConfiguration", linux) { $0.bootLoader = VZMacOSBootLoader() }
        try expect("needs a VZMacOSBootLoader", mac) { $0.bootLoader = VZEFIBootLoader() }
        try expect("no EFI variable store", linux) { $0.bootLoader = VZEFIBootLoader() }
        try expect("no EFI variable store", linux) { _ in unlink(workshop.url("linux.efi").path) }
        let missing = workshop.url("missing")
        try expect("cannot be read", linux) { $0.bootLoader = VZLinuxBootLoader(kernelURL: missing) }
        try expect("cannot be read", linux) {
            let loader = VZLinuxBootLoader(kernelURL: try workshop.file("kernel"))
            loader.initialRamdiskURL = missing
            $0.bootLoader = loader
        }
    }

    @Test func a_mac_needs_a_supported_model_and_its_auxiliary_storage() throws {
        try expect("hardware model is not set", mac) { $0.platform = VZMacPlatformConfiguration() }
        try expect("hardware model", mac) { try platform($0).hardwareModel = .make(minimumOS: [99, 0, 0]) }
        try expect("auxiliary storage is not set", mac) { try platform($0).auxiliaryStorage = nil }
        try expect("cannot be opened", mac) { _ in unlink(workshop.url("mac.aux").path) }
        try expect("another hardware model", mac) {
            let other = VZMacHardwareModel.make(minimumOS: [14, 0, 0])
            try platform($0).auxiliaryStorage = try VZMacAuxiliaryStorage(
                creatingStorageAt: workshop.url("mac.aux"), hardwareModel: other, options: .allowOverwrite)
        }
    }

    @Test func an_auxiliary_storage_from_a_mac_is_taken_as_it_is() throws {
        let configuration = try mac()
        try Data(repeating: 0x7b, count: 100_000).write(to: workshop.url("mac.aux"))
        #expect(mistake(configuration) == nil)
    }

    @Test func disks_must_still_be_disks() throws {
        try expect("storage device attachment is invalid", linux) { _ in
            unlink(workshop.url("linux.img").path)
        }
        try expect("storage device attachment is invalid", linux) { _ in
            truncate(workshop.url("linux.img").path, 513)
        }
        try expect("20 ASCII", linux) {
            ($0.storageDevices.first as? VZVirtioBlockDeviceConfiguration)?.blockDeviceIdentifier =
                String(repeating: "x", count: 21)
        }
        try VZVirtioBlockDeviceConfiguration.validateBlockDeviceIdentifier(String(repeating: "x", count: 20))
        #expect(throws: VZError.self) {
            try VZVirtioBlockDeviceConfiguration.validateBlockDeviceIdentifier("ä")
        }
    }

    @Test func a_network_card_needs_an_attachment_and_a_unicast_address() throws {
        try expect("has no attachment", mac) { $0.networkDevices.first?.attachment = nil }
        try expect("not a unicast address", mac) {
            $0.networkDevices.first?.macAddress = try #require(VZMACAddress(string: "01:00:00:00:00:00"))
        }
    }

    @Test func some_devices_are_there_at_most_once() throws {
        try expect("more than one Virtio socket device", linux) {
            $0.socketDevices = [VZVirtioSocketDeviceConfiguration(), VZVirtioSocketDeviceConfiguration()]
        }
        try expect("more than one memory balloon", linux) {
            let balloon = VZVirtioTraditionalMemoryBalloonDeviceConfiguration()
            $0.memoryBalloonDevices = [balloon, balloon]
        }
        try expect("more than one graphics device", linux) {
            let graphics = VZVirtioGraphicsDeviceConfiguration()
            graphics.scanouts = [VZVirtioGraphicsScanoutConfiguration(widthInPixels: 1, heightInPixels: 1)]
            $0.graphicsDevices = [graphics]
            #expect(mistake($0) == nil)
            $0.graphicsDevices.append(graphics)
        }
    }

    @Test func graphics_fit_the_platform_and_have_one_display() throws {
        let mac = VZMacGraphicsDeviceConfiguration()
        let display = VZMacGraphicsDisplayConfiguration(
            widthInPixels: 1920, heightInPixels: 1200, pixelsPerInch: 80)
        mac.displays = [display]
        let virtio = VZVirtioGraphicsDeviceConfiguration()
        virtio.scanouts = [VZVirtioGraphicsScanoutConfiguration(widthInPixels: 1920, heightInPixels: 1200)]
        try expect("Mac graphics", linux) { $0.graphicsDevices = [mac] }
        try expect("do not go with a Mac", self.mac) {
            $0.graphicsDevices = [mac]
            #expect(mistake($0) == nil)
            $0.graphicsDevices = [virtio]
        }
        try expect("2 displays", self.mac) {
            mac.displays = [display, display]
            $0.graphicsDevices = [mac]
        }
        try expect("0 scanouts", linux) {
            virtio.scanouts = []
            $0.graphicsDevices = [virtio]
        }
    }
}

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite struct DiskTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    private func attach(_ url: URL, readOnly: Bool = false) async -> NSError? {
        await failure {
            Transfer(value: try VZDiskImageStorageDeviceAttachment(url: url, readOnly: readOnly))
        }
    }

    @Test func an_attachment_keeps_what_it_was_made_with() throws {
        let url = try workshop.disk()
        let plain = try VZDiskImageStorageDeviceAttachment(url: url, readOnly: true)
        #expect(plain.url == url && plain.isReadOnly)
        #expect(plain.cachingMode == .automatic && plain.synchronizationMode == .full)
        let other = try VZDiskImageStorageDeviceAttachment(
            url: url, readOnly: false, cachingMode: .cached, synchronizationMode: .none)
        #expect(!other.isReadOnly && other.cachingMode == .cached && other.synchronizationMode == .none)
    }

    @Test func only_a_file_of_whole_sectors_is_a_disk() async throws {
        for size in [0, 1, 511, 513, 1025] {
            #expect(
                isError(await attach(try workshop.file("odd", Data(count: size))), .invalidDiskImage),
                "\(size)")
        }
        #expect(await attach(try workshop.file("even", Data(count: 512))) == nil)
        #expect(isError(await attach(workshop.url("missing")), .invalidDiskImage))
        #expect(isError(await attach(URL(fileURLWithPath: workshop.path), readOnly: true), .invalidDiskImage))
    }
}

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite struct ErrorTests {
    @Test func an_error_is_an_nserror_of_its_domain_and_code() {
        let error: any Error = VZError(
            .virtualMachineLimitExceeded, userInfo: [NSLocalizedDescriptionKey: "too many"])
        let bridged = error as NSError
        #expect(bridged.domain == "VZErrorDomain" && VZErrorDomain == "VZErrorDomain")
        #expect(bridged.code == 6)
        #expect(bridged.localizedDescription == "too many" && error.localizedDescription == "too many")
        #expect((error as? VZError)?.code == .virtualMachineLimitExceeded)
        #expect((error as? VZError)?.userInfo[NSLocalizedDescriptionKey] as? String == "too many")
    }

    @Test func an_underlying_error_is_kept() {
        let error = VZError.configuration("reason", underlying: NSError.posix(EAGAIN)) as NSError
        let underlying = error.userInfo[NSUnderlyingErrorKey] as? NSError
        #expect(underlying?.domain == NSPOSIXErrorDomain && underlying?.code == Int(EAGAIN))
        #expect(error.localizedFailureReason == "reason")
    }

    @Test func every_code_has_a_different_number() {
        let numbers =
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] + Array(10001...10007) + [20001, 20002]
            + Array(30001...30004)
        #expect(numbers.allSatisfy { VZError.Code(rawValue: $0)?.rawValue == $0 })
        #expect(VZError.Code(rawValue: 13) == nil)
    }
}

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite struct MACAddressTests {
    @Test func an_address_is_written_as_it_was_read() throws {
        let address = try #require(VZMACAddress(string: "0A:1b:2c:3d:4E:5f"))
        #expect(address.string == "0a:1b:2c:3d:4e:5f")
        #expect(address == VZMACAddress(string: "0a:1b:2c:3d:4e:5f"))
        #expect(address != VZMACAddress(string: "0a:1b:2c:3d:4e:50"))
        #expect(VZMACAddress(ethernetAddress: address.ethernetAddress) == address)
    }

    @Test func what_is_no_address_is_none() {
        for text in [
            "", "0a:1b:2c:3d:4e", "0a:1b:2c:3d:4e:5f:60", "0a-1b-2c-3d-4e-5f", "a:1b:2c:3d:4e:5f",
            "0a:1b:2c:3d:4e:5g", "0a:1b:2c:3d:4e:+f", "0a:1b:2c:3d:4e:5f:",
        ] {
            #expect(VZMACAddress(string: text) == nil, "\(text)")
        }
    }

    @Test func kinds_of_addresses_are_distinguished() throws {
        let broadcast = try #require(VZMACAddress(string: "ff:ff:ff:ff:ff:ff"))
        #expect(broadcast.isBroadcastAddress && broadcast.isMulticastAddress && !broadcast.isUnicastAddress)
        let ours = try #require(VZMACAddress(string: "00:1b:2c:3d:4e:5f"))
        #expect(ours.isUniversallyAdministeredAddress && !ours.isLocallyAdministeredAddress)
        for _ in 0..<1000 {
            let random = VZMACAddress.randomLocallyAdministered()
            #expect(
                random.isUnicastAddress && random.isLocallyAdministeredAddress && !random.isBroadcastAddress)
        }
    }
}
