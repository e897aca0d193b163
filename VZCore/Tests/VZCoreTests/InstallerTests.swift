import Darwin
import Foundation
import Testing
@_spi(StandIn) import Virtualization

@testable import VZCore

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct Installations {
        let place = TestDirectory()

        /// The progress values of an installation.
        private final class ProgressLog: Sendable {
            private let values = Locked<[Double]>([])
            var all: [Double] { values.with { $0 } }
            func add(_ value: Double) { values.with { $0.append(value) } }
        }

        private func ipsw(_ extra: String = "", minimum: Int = 13) throws -> String {
            let model = try TestDirectory.hardwareModel(minimum: minimum).base64EncodedString()
            try place.write(
                "{\"build\":\"25A354\",\"version\":\"26.0.1\",\"hardware_model\":\"\(model)\"\(extra)}",
                to: "macos.ipsw")
            return place("macos.ipsw")
        }

        private func install(
            _ ipsw: String, diskBytes: UInt64 = 1 << 30, memoryBytes: UInt64 = 1 << 30,
            progress: ProgressLog = ProgressLog()
        ) async throws {
            try await Installer.install(
                ipsw: ipsw, template: place("template"), diskBytes: diskBytes, cpus: 1,
                memoryBytes: memoryBytes,
                progress: { progress.add($0) })
        }

        @Test func a_restore_image_says_what_it_holds_and_wants() async throws {
            let image = try await Installer.restoreImage(at: ipsw())
            #expect(image.build == "25A354" && image.version == "26.0.1" && image.isSupported)
            #expect(image.minimumCPUs == 2 && image.minimumMemoryBytes == 4 << 30)
            #expect(
                image.hardwareModel.flatMap(VZMacHardwareModel.init(dataRepresentation:))?.isSupported == true
            )
            #expect(image.url.hasPrefix("file://"))
        }

        @Test(arguments: ["no json", "{\"build\":1}"])
        func an_invalid_restore_image_is_refused(content: String) async throws {
            try place.write(content, to: "macos.ipsw")
            let refused = await failure { _ = try await Installer.restoreImage(at: place("macos.ipsw")) }
            #expect(refused.code == .installFailed)
            #expect(refused.reason.hasPrefix("reading the restore image \(place("macos.ipsw")): "))
        }

        @Test func the_newest_restore_image_is_asked_for() async throws {
            StandIn.latestRestoreImage = URL(fileURLWithPath: try ipsw())
            defer { StandIn.latestRestoreImage = nil }
            #expect(try await Installer.latestRestoreImage().build == "25A354")
            StandIn.latestRestoreImage = nil
            let refused = await failure { _ = try await Installer.latestRestoreImage() }
            #expect(refused.code == .installFailed)
            #expect(refused.reason.hasPrefix("requesting the newest restore image from Apple: "))
        }

        @Test func an_installation_makes_a_template_to_clone() async throws {
            let progress = ProgressLog()
            try await install(ipsw(",\"boot_program\":\"#!/bin/sh\\nexit 0\\n\""), progress: progress)
            #expect(try place.names() == ["macos.ipsw", "template"])
            #expect(
                try place.names(in: "template") == ["AuxiliaryStorage", "Disk.img", "HardwareModel.json"],
                "every clone gets a new identity")
            var disk = stat()
            try #require(stat(place("template/Disk.img"), &disk) == 0)
            #expect(disk.st_size == 1 << 30)
            #expect(disk.st_blocks < 1 << 16, "it takes no more space than it holds")
            #expect(progress.all.last == 1)
            #expect(progress.all == progress.all.sorted())
            #expect(progress.all.allSatisfy { (0...1).contains($0) })

            try Bundles.clone(template: place("template"), bundle: place("vm"), os: .macos)
            try await withMachine(.small(place("vm"))) { machine, log in
                try await machine.start()
                await log.first(.guestStopped)
            }
            await until { VZCoreLiveness.machines == 0 }
        }

        @Test(arguments: [0, 1000] as [UInt64])
        func a_disk_of_no_or_half_sectors_is_refused(bytes: UInt64) async throws {
            let refused = await failure { try await install(ipsw(), diskBytes: bytes) }
            #expect(refused.code == .badSpec)
            #expect(try place.names() == ["macos.ipsw"])
        }

        @Test func a_restore_image_this_host_cannot_run_is_refused() async throws {
            let image = try ipsw(minimum: 99)
            let refused = await failure { try await install(image) }
            #expect(refused.code == .notSupported)
            #expect(refused.reason.contains("macOS 26.0.1 (25A354)"))
            #expect(try place.names() == ["macos.ipsw"])
            let described = try await Installer.restoreImage(at: image)
            #expect(!described.isSupported && described.hardwareModel == nil)
        }

        @Test(arguments: ["template", "template.installing"])
        func what_is_there_already_is_left_alone(name: String) async throws {
            try FileManager.default.createDirectory(atPath: place(name), withIntermediateDirectories: false)
            try place.write("mine", to: name + "/note")
            let refused = await failure { try await install(ipsw()) }
            #expect(refused.code == .exists)
            #expect(refused.reason.contains(place(name)))
            #expect(try place.read(name + "/note") == "mine")
            #expect(try place.names() == ["macos.ipsw", name])
        }

        @Test func a_template_without_a_parent_directory_is_refused() async throws {
            let image = try ipsw()
            let refused = await failure {
                try await Installer.install(
                    ipsw: image, template: place("no/template"), diskBytes: 512, cpus: 1,
                    memoryBytes: 1 << 30,
                    progress: { _ in })
            }
            #expect(refused.code == .io)
            #expect(refused.reason.contains(place("no/template.installing")))
        }

        @Test func a_failed_installation_leaves_nothing_and_reports_it() async throws {
            // The two macOS VMs a host may run are there.
            try await withMachine(.small(place.bundle("a"))) { first, _ in
                try await withMachine(.small(place.bundle("b"))) { second, _ in
                    try await first.start()
                    try await second.start()
                    let refused = await failure { try await install(ipsw()) }
                    #expect(refused.code == .limitExceeded)
                    #expect(refused.reason.contains("installing macOS on the VM of"))
                    #expect(
                        refused.reason.hasSuffix("; everything created for \(place("template")) was removed"))
                    #expect(try place.names() == ["a", "b", "macos.ipsw"])
                }
            }
        }

        @Test func a_template_made_by_another_meanwhile_is_left_alone() async throws {
            let image = try ipsw()
            let template = place("template")
            let refused = await failure {
                try await Installer.install(
                    ipsw: image, template: template, diskBytes: 1 << 20, cpus: 2, memoryBytes: 4 << 30,
                    progress: { _ in
                        try? FileManager.default.createDirectory(
                            atPath: template + "/mine", withIntermediateDirectories: true)
                    })
            }
            #expect(refused.reason.contains("renaming \(template).installing to the template's name"))
            #expect(try place.names() == ["macos.ipsw", "template"])
            #expect(try place.names(in: "template") == ["mine"])
        }

        @Test func a_cancelled_installation_leaves_nothing_and_reports_it() async throws {
            let image = try ipsw()
            for give in ["before", "during"] {
                let progress = ProgressLog()
                let caller = Task {
                    defer { progress.add(1) }
                    if give == "before" { await until { Task.isCancelled } }
                    try await install(image, progress: progress)
                }
                if give == "during" { await until { !progress.all.isEmpty } }
                caller.cancel()
                let result = await caller.result
                if case .failure(let error) = result {
                    let failure = try #require(error as? VZFailure)
                    #expect(failure.code == .cancelled)
                    #expect(try place.names() == ["macos.ipsw"])
                } else {
                    try FileManager.default.removeItem(atPath: place("template"))
                }
            }
            await until { VZCoreLiveness.machines == 0 && StandIn.liveMachines == 0 }
        }
    }
}
