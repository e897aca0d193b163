import Foundation
import Testing

@testable @_spi(StandIn) import Virtualization

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite(.timeLimit(.minutes(5))) struct LimitTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    private func macs(_ count: Int) throws -> [Rig] {
        try (0..<count).map { try Rig(workshop.mac(name: "mac\($0)")) }
    }

    @Test func a_third_mac_is_refused_and_may_start_when_one_has_stopped() async throws {
        let macs = try macs(3)
        try await macs[0].start()
        try await macs[1].start()
        let error = await failure { try await macs[2].start() }
        #expect(isError(error, .virtualMachineLimitExceeded))
        #expect(
            error?.localizedDescription
                == "The maximum supported number of active virtual machines has been reached.")
        #expect(macs[2].state == .stopped)
        try await macs[0].pause()
        #expect(isError(await failure { try await macs[2].start() }, .virtualMachineLimitExceeded))
        try await macs[0].stop()
        try await macs[2].start()
        #expect(macs[2].state == .running)
    }

    @Test func a_mac_that_powered_off_or_was_let_go_does_not_count() async throws {
        let off = try Rig(workshop.mac("#!/bin/sh\nexit 0\n", name: "off"))
        try await off.start()
        #expect(try await off.log.next() == .stopped(.stopped))
        var macs = try macs(3)
        try await macs[0].start()
        try await macs[1].start()
        let released = Waiting<Void>()
        let queue = macs.removeFirst().queue
        queue.async { released.add(()) }
        try await released.next()
        try await macs[1].start()
        #expect(macs.map(\.state) == [.running, .running])
    }

    @Test func restored_macs_count_too() async throws {
        let macs = try macs(3)
        let state = workshop.url("state")
        try await macs[0].start()
        try await macs[0].pause()
        try await macs[0].save(state)
        try await macs[0].stop()
        try await macs[1].start()
        try await macs[2].start()
        #expect(isError(await failure { try await macs[0].restore(state) }, .virtualMachineLimitExceeded))
        #expect(macs[0].state == .stopped)
        try await macs[2].stop()
        try await macs[0].restore(state)
        #expect(macs[0].state == .paused)
    }

    @Test func other_guests_are_not_limited() async throws {
        let machines = try (0..<4).map { try Rig(workshop.linux(name: "linux\($0)")) }
        for machine in machines { try await machine.start() }
        #expect(machines.map(\.state) == [.running, .running, .running, .running])
    }

    @Test func a_disk_that_another_machine_may_write_is_refused_until_that_one_stops() async throws {
        let first = try Rig(workshop.linux())
        let configuration = try workshop.linux(name: "other")
        configuration.storageDevices = [try workshop.attached(workshop.url("linux.img"))]
        let second = try Rig(configuration)
        try await first.start()
        let error = await failure { try await second.start() }
        #expect(isError(error, .invalidVirtualMachineConfiguration))
        #expect(error?.localizedDescription == "The storage device attachment is invalid.")
        #expect((error?.userInfo[NSUnderlyingErrorKey] as? NSError)?.code == Int(EAGAIN))
        #expect(second.state == .stopped)
        try await first.stop()
        try await second.start()
    }

    @Test func a_disk_may_be_read_by_many() async throws {
        let disk = try workshop.disk("shared.img")
        let machines = try (0..<3).map { index in
            let configuration = try workshop.linux(name: "linux\(index)")
            configuration.storageDevices.append(try workshop.attached(disk, readOnly: true))
            return try Rig(configuration)
        }
        for machine in machines { try await machine.start() }
        let configuration = try workshop.linux(name: "writer")
        configuration.storageDevices.append(try workshop.attached(disk))
        let writer = try Rig(configuration)
        #expect(isError(await failure { try await writer.start() }, .invalidVirtualMachineConfiguration))
    }

    @Test func an_auxiliary_storage_in_use_is_refused_and_nothing_is_kept() async throws {
        let first = try Rig(workshop.mac(name: "mac0"))
        let configuration = try workshop.mac(name: "mac1")
        let platform = try #require(configuration.platform as? VZMacPlatformConfiguration)
        platform.auxiliaryStorage = VZMacAuxiliaryStorage(url: workshop.url("mac0.aux"))
        let second = try Rig(configuration)
        try await first.start()
        let error = await failure { try await second.start() }
        #expect(isError(error, .invalidVirtualMachineConfiguration))
        #expect(error?.localizedDescription == "Failed to lock auxiliary storage.")
        // Neither the second's disk nor its place among the Macs is held.
        let third = try Rig(workshop.mac(name: "mac1"))
        try await third.start()
    }
}
