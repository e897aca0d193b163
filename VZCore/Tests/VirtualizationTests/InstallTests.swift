import Foundation
import Testing

@testable @_spi(StandIn) import Virtualization

// swift-format-ignore: AlwaysUseLowerCamelCase
/// Every test here but the last few works on a separate Mac.
@Suite(.timeLimit(.minutes(5))) struct InstallTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    private func image(_ json: String = #"{"build": "25A354", "version": "26.0.1"}"#) throws -> URL {
        try workshop.file("restore.ipsw", json)
    }

    private func load(_ url: URL) async throws -> VZMacOSRestoreImage {
        try await withCheckedThrowingContinuation { continuation in
            VZMacOSRestoreImage.load(from: url) { continuation.resume(with: $0.map { Transfer(value: $0) }) }
        }.value
    }

    private func installer(_ rig: Rig, _ url: URL) -> Transfer<VZMacOSInstaller> {
        rig.look { Transfer(value: VZMacOSInstaller(virtualMachine: $0, restoringFromImageAt: url)) }
    }

    private func install(_ rig: Rig, _ installer: Transfer<VZMacOSInstaller>) async throws {
        let _: Void = try await rig.ask { _, done in
            let done = Transfer(value: done)
            installer.value.install { done.value($0) }
        }
    }

    @Test func a_restore_image_says_what_it_holds_and_needs() async throws {
        let model = VZMacHardwareModel.make(minimumOS: [15, 0, 0]).dataRepresentation.base64EncodedString()
        let image = try await load(
            image(
                """
                {"build": "25A354", "version": "26.1", "hardware_model": "\(model)", "minimum_cpus": 3,
                "minimum_memory_bytes": 5368709120}
                """))
        #expect(image.buildVersion == "25A354")
        let version = image.operatingSystemVersion
        #expect(version.majorVersion == 26 && version.minorVersion == 1 && version.patchVersion == 0)
        #expect(image.isSupported)
        let needs = try #require(image.mostFeaturefulSupportedConfiguration)
        #expect(needs.hardwareModel.dataRepresentation.base64EncodedString() == model)
        #expect(needs.minimumSupportedCPUCount == 3)
        #expect(needs.minimumSupportedMemorySize == 5_368_709_120)
        #expect(image.url == workshop.url("restore.ipsw"))
    }

    @Test func a_restore_image_for_newer_hosts_is_not_supported() async throws {
        let model = VZMacHardwareModel.make(minimumOS: [99, 0, 0]).dataRepresentation.base64EncodedString()
        let image = try await load(image(#"{"build": "1", "version": "99", "hardware_model": "\#(model)"}"#))
        #expect(!image.isSupported)
        #expect(image.mostFeaturefulSupportedConfiguration == nil)
    }

    @Test func what_is_no_restore_image_is_refused() async throws {
        #expect(
            isError(
                await failure { Transfer(value: try await load(workshop.url("missing"))) },
                .restoreImageLoadFailed))
        for (content, code) in [
            ("not JSON", VZError.Code.restoreImageLoadFailed), ("{}", .invalidRestoreImage),
            (#"{"build": "1", "version": "26", "hardware_model": "AAAA"}"#, .invalidRestoreImage),
        ] {
            let url = try image(content)
            #expect(isError(await failure { Transfer(value: try await load(url)) }, code), "\(content)")
        }
        let caught = StandIn.violations {
            guard let url = URL(string: "https://example.com/restore.ipsw") else { return }
            VZMacOSRestoreImage.load(from: url) { _ in }
        }
        #expect(caught.count == 1)
    }

    @Test func an_installation_advances_and_leaves_a_disk_that_boots() async throws {
        let rig = try Rig(workshop.mac())
        let program = ##"#!/bin/sh\necho installed\n"##
        let installer = try installer(
            rig, image(#"{"build": "1", "version": "26", "boot_program": "\#(program)"}"#))
        #expect(installer.value.progress.fractionCompleted == 0)
        let running: VZVirtualMachine.State = try await rig.ask { vm, done in
            let (answer, vm) = (Transfer(value: done), Transfer(value: vm))
            installer.value.install { result in answer.value(result.map { vm.value.state }) }
        }
        #expect(running == .running, "the handler is called before the machine has stopped")
        #expect(installer.value.progress.fractionCompleted == 1)
        #expect(try await rig.log.next() == .stopped(.stopped))
        try await rig.start()
        #expect(try await rig.console.line() == "installed")
    }

    @Test func an_installation_without_a_program_leaves_a_mark() async throws {
        let rig = try Rig(workshop.mac())
        try await install(rig, installer(rig, image()))
        let disk = try Data(contentsOf: workshop.url("mac.img"))
        #expect(disk.starts(with: Data("macOS 26.0.1 (25A354) was installed here\n".utf8)))
        #expect(disk.count == 16 * 512)
    }

    @Test func a_cancelled_installation_ends_so_and_the_machine_stops() async throws {
        let rig = try Rig(workshop.mac(faults: #""hang": ["install"]"#))
        let installer = try installer(rig, image())
        let progress = installer.value.progress
        async let result = failure { try await install(rig, installer) }
        try await until { progress.completedUnitCount == 50 }
        #expect(rig.state == .running)
        progress.cancel()
        #expect(isError(await result, .operationCancelled))
        #expect(try await rig.log.next() == .stopped(.stopped))
    }

    @Test func an_installation_fails_when_asked() async throws {
        let rig = try Rig(workshop.mac(faults: #""fail": {"install": 10006}"#))
        #expect(
            isError(
                await failure { try await install(rig, installer(rig, image())) }, .installationRequiresUpdate
            ))
        #expect(try await rig.log.next() == .stopped(.stopped))
    }

    @Test func an_installation_needs_a_stopped_mac_of_the_images_model_and_a_disk() async throws {
        let image = try image()
        let running = try Rig(workshop.mac(name: "running"))
        try await running.start()
        #expect(
            isError(
                await failure { try await install(running, installer(running, image)) },
                .invalidVirtualMachineStateTransition))

        let other = try workshop.mac(name: "other")
        (other.platform as? VZMacPlatformConfiguration)?.hardwareModel = .make(minimumOS: [14, 0, 0])
        let stranger = try Rig(other)
        #expect(
            isError(
                await failure { try await install(stranger, installer(stranger, image)) }, .installationFailed
            ))
        #expect(stranger.state == .stopped)

        let linux = try Rig(workshop.linux())
        #expect(
            isError(
                await failure { try await install(linux, installer(linux, image)) },
                .invalidVirtualMachineConfiguration))

        let bare = try workshop.mac(name: "bare")
        bare.storageDevices = []
        let diskless = try Rig(bare)
        #expect(
            isError(
                await failure { try await install(diskless, installer(diskless, image)) }, .installationFailed
            ))
        #expect(try await diskless.log.next() == .stopped(.stopped))
    }

    @Test func an_installation_counts_as_a_running_mac() async throws {
        let rig = try Rig(workshop.mac(faults: #""hang": ["install"]"#))
        let installer = try installer(rig, image())
        async let result = failure { try await install(rig, installer) }
        let macs = try (0..<2).map { try Rig(workshop.mac(name: "mac\($0)")) }
        try await until { rig.state == .running }
        try await macs[0].start()
        #expect(isError(await failure { try await macs[1].start() }, .virtualMachineLimitExceeded))
        installer.value.progress.cancel()
        #expect(isError(await result, .operationCancelled))
        #expect(try await rig.log.next() == .stopped(.stopped))
        try await macs[1].start()
    }

    @Test func an_installation_is_begun_once_on_the_queue_and_not_cancelled_before() async throws {
        let image = try image()
        let rig = try Rig(workshop.mac(faults: #""hang": ["install"]"#))
        let installer = installer(rig, image)
        #expect(StandIn.violations { installer.value.install { _ in } }.count == 1, "off the queue")
        #expect(rig.look { _ in StandIn.violations { installer.value.install { _ in } } }.isEmpty)
        #expect(rig.look { _ in StandIn.violations { installer.value.install { _ in } } }.count == 1, "twice")

        let other = try Rig(workshop.mac(name: "other"))
        let early = self.installer(other, image)
        early.value.progress.cancel()
        #expect(other.look { _ in StandIn.violations { early.value.install { _ in } } }.count == 1)
    }

    @Test func a_machine_is_left_alone_while_macos_is_installed_on_it() async throws {
        let rig = try Rig(workshop.mac(faults: #""hang": ["install"]"#))
        let installer = try installer(rig, image())
        rig.look { _ in installer.value.install { _ in } }
        #expect(rig.look { vm in StandIn.violations { vm.stop { _ in } } }.count == 1)
        let other = try Rig(workshop.mac(faults: #""hang": ["install"]"#, name: "other"))
        let second = try self.installer(other, image())
        other.look { _ in second.value.install { _ in } }
        #expect(other.look { vm in StandIn.violations { vm.pause { _ in } } }.count == 1)
    }

    @Test func a_machine_may_be_stopped_as_soon_as_the_installation_has_ended() async throws {
        let rig = try Rig(workshop.mac())
        let installer = try installer(rig, image())
        let _: Void = try await rig.ask { vm, done in
            let (vm, done) = (Transfer(value: vm), Transfer(value: done))
            installer.value.install { _ in vm.value.stop { done.value(Rig.result($0)) } }
        }
        #expect(rig.state == .stopped)
        #expect(rig.log.isEmpty)
    }

    @Test func an_installer_that_is_let_go_gives_up() async throws {
        var rig: Rig? = try Rig(workshop.mac(faults: #""hang": ["install"]"#))
        let image = try image()
        let (log, queue) = (try #require(rig?.log), try #require(rig?.queue))
        let answers = Waiting<NSError?>()
        if let rig {
            let installer = installer(rig, image)
            rig.look { _ in installer.value.install { answers.add($0.error) } }
        }
        rig = nil
        #expect(isError(try await answers.next(), .operationCancelled))
        #expect(log.isEmpty)
        // Its disk is free again once what came with the answer is done.
        queue.sync {}
        let next = try Rig(workshop.mac())
        try await next.start()
    }

    @Test func the_latest_image_is_the_one_in_the_catalog_if_there_is_a_catalog() async throws {
        let without = await failure { Transfer(value: try VZMacOSRestoreImage.catalogued(nil)) }
        #expect(isError(without, .restoreImageCatalogLoadFailed))
        let image = try VZMacOSRestoreImage.catalogued(image())
        #expect(image.buildVersion == "25A354")
    }
}

extension Result where Failure == any Error {
    fileprivate var error: NSError? { if case .failure(let error) = self { error as NSError } else { nil } }
}
