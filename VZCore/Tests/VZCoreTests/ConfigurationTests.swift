import Darwin
import Foundation
import Testing
import Virtualization

@testable import VZCore

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct Configurations {
        let place = TestDirectory()

        private func linux(_ adjust: (inout MachineSpec) -> Void = { _ in }) throws -> MachineSpec {
            var spec = MachineSpec(
                bundle: try place.linuxBundle(kernel: "#!/bin/sh\nexec sleep 1000\n"), os: .linux, cpus: 1,
                memoryBytes: 256 << 20, linux: .init(kernel: "kernel"))
            adjust(&spec)
            return spec
        }

        @Test func cpus_and_memory_are_the_nearest_the_host_allows() throws {
            let limits = HostLimits.current
            #expect(limits.isSupported)
            let bundle = try place.bundle()
            let greedy = MachineSpec(bundle: bundle, os: .macos, cpus: 1000, memoryBytes: .max)
            let effective = try Configuration(greedy).effective
            #expect(effective.cpus == limits.maximumCPUs)
            #expect(effective.memoryBytes == limits.maximumMemoryBytes)
            let modest = try Configuration(MachineSpec(bundle: bundle, os: .macos, cpus: 1, memoryBytes: 1))
                .effective
            #expect(modest.cpus == max(1, limits.minimumCPUs))
            #expect(modest.memoryBytes == limits.minimumMemoryBytes)
        }

        @Test func memory_is_whole_mebibytes() throws {
            let odd = MachineSpec(
                bundle: try place.bundle(), os: .macos, cpus: 1, memoryBytes: 512 << 20 + 17)
            #expect(try Configuration(odd).effective.memoryBytes.isMultiple(of: 1 << 20))
        }

        @Test func the_limits_are_those_of_the_framework() {
            let limits = HostLimits(
                isSupported: true, minimumCPUs: 2, maximumCPUs: 8, minimumMemoryBytes: 4 << 20,
                maximumMemoryBytes: 1 << 30)
            #expect([1, 2, 5, 8, 9].map(limits.cpus(nearest:)) == [2, 2, 5, 8, 8])
            #expect(limits.memoryBytes(nearest: (5 << 20) + 1) == 5 << 20)
            #expect(limits.memoryBytes(nearest: 1) == 4 << 20)
        }

        @Test func the_address_is_the_specs_or_a_random_one() throws {
            let bundle = try place.bundle()
            let fixed = try Configuration(.small(bundle) { $0.macAddress = "52:54:00:12:34:56" })
            #expect(fixed.effective.macAddress == "52:54:00:12:34:56")
            let random = try Set((0..<3).map { _ in try Configuration(.small(bundle)).effective.macAddress })
            #expect(random.count == 3)
            #expect(try Configuration(.small(bundle) { $0.network = .none }).effective.macAddress == nil)
        }

        @Test func a_network_of_its_own_is_vmnets() throws {
            let configured = try Configuration(.small(place.bundle()) { $0.network = .vmnet })
            #expect(configured.vz.networkDevices.first?.attachment is VZVmnetNetworkDeviceAttachment)
            let nat = try Configuration(.small(place.bundle("b")))
            #expect(nat.vz.networkDevices.first?.attachment is VZNATNetworkDeviceAttachment)
        }

        @Test func a_machine_on_a_network_of_its_own_runs() async throws {
            try await withMachine(.small(place.bundle()) { $0.network = .vmnet }) { machine, _ in
                try await machine.start()
                #expect(await machine.state == .running)
            }
        }

        @Test func a_macos_guest_has_its_screen_with_a_window_and_without() throws {
            let bundle = try place.bundle()
            for display in MachineSpec.Display.allCases {
                let vz = try Configuration(.small(bundle) { $0.display = display }).vz
                #expect(
                    vz.graphicsDevices.count == 1 && vz.keyboards.count == 1 && vz.pointingDevices.count == 1)
                #expect(vz.platform is VZMacPlatformConfiguration && vz.bootLoader is VZMacOSBootLoader)
                #expect(vz.socketDevices.count == 1 && vz.memoryBalloonDevices.count == 1)
            }
        }

        @Test func a_savable_machine_has_no_entropy_device() throws {
            let bundle = try place.bundle()
            #expect(try Configuration(.small(bundle)).vz.entropyDevices.isEmpty)
            #expect(try Configuration(.small(bundle) { $0.savable = false }).vz.entropyDevices.count == 1)
        }

        @Test(
            arguments: zip(
                MachineSpec.DiskSync.allCases, [VZDiskImageSynchronizationMode.none, .fsync, .full]))
        func the_disk_is_cached_and_flushes_as_far_as_asked(
            sync: MachineSpec.DiskSync, mode: VZDiskImageSynchronizationMode
        ) throws {
            let vz = try Configuration(.small(place.bundle()) { $0.diskSync = sync }).vz
            let attachment = vz.storageDevices.first?.attachment as? VZDiskImageStorageDeviceAttachment
            #expect(attachment?.cachingMode == .cached)
            #expect(attachment?.synchronizationMode == mode)
            #expect(attachment?.isReadOnly == false)
        }

        @Test func a_linux_guest_boots_its_kernel_with_its_command_line() async throws {
            let kernel = "#!/bin/sh\necho \"booted with $*\"\nexec sleep 1000\n"
            let bundle = try place.linuxBundle(kernel: kernel)
            try place.write("rd", to: "vm/initrd")
            let spec = MachineSpec(
                bundle: bundle, os: .linux, cpus: 1, memoryBytes: 256 << 20, consoleLog: "console.log",
                linux: .init(kernel: bundle + "/kernel", initrd: "initrd", commandLine: "console=hvc0 quiet"))
            let loader = try Configuration(spec).vz.bootLoader as? VZLinuxBootLoader
            #expect(loader?.initialRamdiskURL?.path == bundle + "/initrd")
            try await withMachine(spec) { machine, _ in
                try await machine.start()
                try await until {
                    try place.read("vm/console.log").contains("booted with console=hvc0 quiet\n")
                }
            }
        }

        @Test func a_linux_guest_boots_by_efi_and_keeps_its_variables() async throws {
            let spec = MachineSpec(
                bundle: try place.linuxBundle(guest: Guest.powersOff), os: .linux, cpus: 1,
                memoryBytes: 256 << 20)
            for _ in 0..<2 {
                try await withMachine(spec) { machine, log in
                    try await machine.start()
                    await log.first(.guestStopped)
                }
                #expect(try place.names(in: "vm").contains("EFIVariableStore"))
            }
        }

        @Test func a_variable_store_that_cannot_be_made_is_reported() async throws {
            let spec = MachineSpec(
                bundle: try place.linuxBundle(), os: .linux, cpus: 1, memoryBytes: 256 << 20)
            try #require(symlink("/nowhere/at/all", place("vm/EFIVariableStore")) == 0)
            let refused = await failure { _ = try Configuration(spec) }
            #expect(
                refused.reason.hasPrefix("creating the EFI variable store \(place("vm/EFIVariableStore")): "))
        }

        @Test func a_linux_window_has_a_screen_and_headless_has_none() throws {
            let spec = try linux()
            #expect(try Configuration(spec).vz.graphicsDevices.isEmpty)
            var windowed = spec
            windowed.display = .window
            let vz = try Configuration(windowed).vz
            #expect(vz.graphicsDevices.first is VZVirtioGraphicsDeviceConfiguration)
            #expect(vz.keyboards.count == 1 && vz.pointingDevices.count == 1)
        }

        @Test(arguments: [
            ("Disk.img", FailureCode.diskImage), ("MachineIdentifier", .io), ("AuxiliaryStorage", .io),
            ("HardwareModel.json", .io),
        ])
        func a_missing_file_is_named(name: String, code: FailureCode) async throws {
            let bundle = try place.bundle()
            try FileManager.default.removeItem(atPath: place("vm/" + name))
            let refused = await failure { _ = try Machine(id: 1, spec: .small(bundle), observer: Log()) }
            #expect(refused.code == code)
            #expect(refused.reason.contains("\(bundle)/\(name)"))
        }

        @Test(arguments: ["kernel", "initrd"])
        func a_missing_kernel_or_initrd_is_named(name: String) async throws {
            let spec = try linux {
                $0.linux = .init(kernel: name == "kernel" ? "nothing" : "kernel", initrd: "nothing")
            }
            let refused = await failure { _ = try Configuration(spec) }
            #expect(refused.code == .io)
            #expect(refused.reason.contains(place("vm/nothing")))
        }

        @Test(arguments: [
            ("MachineIdentifier", "cut o"), ("HardwareModel.json", "{"),
            ("HardwareModel.json", "{\"model\":\"AA\"}"),
            ("HardwareModel.json", "{\"hardwareModel\":\"QUJD\"}"),
        ])
        func a_damaged_file_is_reported(name: String, content: String) async throws {
            let bundle = try place.bundle()
            try place.write(content, to: "vm/" + name)
            let refused = await failure { _ = try Configuration(.small(bundle)) }
            #expect(refused.code == .invalidConfiguration)
            #expect(refused.reason.hasPrefix("reading \(bundle)/\(name): "))
        }

        @Test func a_damaged_identity_of_a_linux_guest_is_reported() async throws {
            let spec = try linux()
            try place.write("", to: "vm/MachineIdentifier")
            let refused = await failure { _ = try Configuration(spec) }
            #expect(refused.code == .invalidConfiguration)
            #expect(refused.reason.contains("clone the bundle again"))
        }

        @Test func a_hardware_model_of_a_newer_macos_is_not_supported_with_a_reason() async throws {
            let bundle = try place.bundle()
            let model = try TestDirectory.hardwareModel(minimum: 99).base64EncodedString()
            try place.write("{\"hardwareModel\":\"\(model)\"}", to: "vm/HardwareModel.json")
            let refused = await failure { _ = try Configuration(.small(bundle)) }
            #expect(refused.code == .notSupported)
            #expect(refused.reason.contains("this host cannot run that hardware model"))
        }

        @Test func what_the_framework_refuses_has_its_reason() async throws {
            let bundle = try place.bundle()
            try place.write("no whole sector", to: "vm/Disk.img")
            let refused = await failure { _ = try Configuration(.small(bundle)) }
            #expect([.invalidConfiguration, .diskImage].contains(refused.code))
            #expect(refused.reason.contains("(VZErrorDomain "))
        }

        @Test func a_storage_of_another_hardware_model_is_invalid_with_the_frameworks_reason() async throws {
            let bundle = try place.bundle()
            let other = try TestDirectory.hardwareModel(minimum: 12).base64EncodedString()
            try place.write("{\"hardware_model\":\"\(other)\"}", to: "vm/AuxiliaryStorage")
            let refused = await failure { _ = try Configuration(.small(bundle)) }
            #expect(refused.code == .invalidConfiguration)
            #expect(refused.reason.hasPrefix("configuring the VM of \(bundle): "))
            #expect(refused.reason.contains("(VZErrorDomain 2)"))
        }

        @Test func a_network_vmnet_refuses_is_reported_and_networks_are_given_back() async throws {
            let bundle = try place.bundle()
            for _ in 0..<2 {
                var networks: [IsolatedNetwork] = []
                // The stand-in has subnets for fewer.
                let refused = await failure {
                    for _ in 0..<300 { networks.append(try IsolatedNetwork(for: bundle)) }
                }
                #expect(refused.code == .network)
                #expect(refused.reason.contains("the network of the VM of \(bundle): vmnet refused it"))
                #expect(networks.count > 100)
            }
            _ = try IsolatedNetwork(for: bundle)
        }

        @Test func the_console_is_appended_to_and_closed_to_others() async throws {
            let bundle = try place.bundle(guest: "#!/bin/sh\necho guest\n")
            try place.write("before\n", to: "log")
            let spec = MachineSpec.small(bundle) { $0.consoleLog = place("log") }
            try await withMachine(spec) { machine, log in
                try await machine.start()
                await log.first(.guestStopped)
            }
            #expect(try place.read("log") == "before\nguest\n")
            let fresh = MachineSpec.small(bundle) { $0.consoleLog = "console.log" }
            _ = try Configuration(fresh)
            #expect(try place.mode(of: "vm/console.log") == 0o600)
        }

        @Test func a_console_that_is_a_link_is_refused() async throws {
            let bundle = try place.bundle()
            try #require(symlink(place("elsewhere"), place("vm/console.log")) == 0)
            let refused = await failure {
                _ = try Configuration(.small(bundle) { $0.consoleLog = "console.log" })
            }
            #expect(refused.code == .io)
            #expect(refused.reason.contains("\(bundle)/console.log"))
        }
    }
}
