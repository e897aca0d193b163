import Darwin
import Foundation
import Testing
import Virtualization

@testable import VZCore

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct Clones {
        let place = TestDirectory()

        @Test func a_macos_clone_has_the_templates_files_and_a_new_identity() throws {
            let template = try place.template(guest: "#!/bin/sh\n")
            for name in ["a", "b"] {
                try Bundles.clone(template: template, bundle: place(name), os: .macos, diskBytes: 0)
                #expect(
                    try place.names(in: name)
                        == ["AuxiliaryStorage", "Disk.img", "HardwareModel.json", "MachineIdentifier"])
                #expect(try place.read(name + "/Disk.img") == place.read("template/Disk.img"))
                #expect(try place.read(name + "/AuxiliaryStorage") == place.read("template/AuxiliaryStorage"))
                _ = try Configuration(.small(place(name)))
            }
            #expect(try place.read("a/MachineIdentifier") != place.read("b/MachineIdentifier"))
        }

        @Test func a_clone_is_closed_to_others() throws {
            let template = try place.template()
            try #require(chmod(template + "/Disk.img", 0o444) == 0)
            try Bundles.clone(template: template, bundle: place("vm"), os: .macos)
            #expect(try place.mode(of: "vm") == 0o700)
            for name in try place.names(in: "vm") {
                #expect(try place.mode(of: "vm/" + name) == 0o600, "\(name)")
            }
        }

        @Test func a_linux_clone_has_a_disk_an_identity_and_the_variables_there_are() throws {
            let template = try place.linuxBundle("template", kernel: "k")
            try FileManager.default.removeItem(atPath: place("template/MachineIdentifier"))
            try Bundles.clone(template: template, bundle: place("a"), os: .linux)
            #expect(try place.names(in: "a") == ["Disk.img", "MachineIdentifier"])
            try place.write("vars", to: "template/EFIVariableStore")
            try Bundles.clone(template: template, bundle: place("b"), os: .linux)
            #expect(try place.names(in: "b") == ["Disk.img", "EFIVariableStore", "MachineIdentifier"])
            #expect(try place.read("b/EFIVariableStore") == "vars")
        }

        @Test func the_disk_grows_and_never_shrinks() throws {
            let template = try place.template()
            try Bundles.clone(template: template, bundle: place("large"), os: .macos, diskBytes: 1 << 40)
            try Bundles.clone(template: template, bundle: place("small"), os: .macos, diskBytes: 512)
            var found = stat()
            try #require(stat(place("large/Disk.img"), &found) == 0)
            #expect(found.st_size == 1 << 40)
            #expect(found.st_blocks < 1 << 20, "and takes no space for it")
            try #require(stat(place("small/Disk.img"), &found) == 0)
            #expect(found.st_size == 4096)
        }

        @Test func a_disk_of_half_sectors_is_refused() async throws {
            let template = try place.template()
            let refused = await failure {
                try Bundles.clone(template: template, bundle: place("vm"), os: .macos, diskBytes: 5000)
            }
            #expect(refused.code == .badSpec)
            #expect(try place.names() == ["template"])
        }

        @Test func an_asif_image_is_cloned_but_not_grown() async throws {
            let template = try place.template(guest: "shdw")
            try Bundles.clone(template: template, bundle: place("vm"), os: .macos)
            let refused = await failure {
                try Bundles.clone(template: template, bundle: place("other"), os: .macos, diskBytes: 1 << 20)
            }
            #expect(refused.code == .notSupported)
            #expect(refused.reason.contains("ASIF"))
            #expect(try place.names() == ["template", "vm"])
        }

        @Test func a_directory_that_is_there_is_filled_and_its_other_files_stay() throws {
            let template = try place.template()
            try FileManager.default.createDirectory(atPath: place("vm"), withIntermediateDirectories: false)
            try place.write("mine", to: "vm/RuntimeMetadata.json")
            try Bundles.clone(template: template, bundle: place("vm"), os: .macos)
            #expect(try place.read("vm/RuntimeMetadata.json") == "mine")
            #expect(try place.names(in: "vm").count == 5)
        }

        @Test(arguments: ["Disk.img", "AuxiliaryStorage", "HardwareModel.json", "MachineIdentifier"])
        func a_vm_is_never_overwritten(name: String) async throws {
            let template = try place.template()
            try FileManager.default.createDirectory(atPath: place("vm"), withIntermediateDirectories: false)
            try place.write("precious", to: "vm/" + name)
            let refused = await failure {
                try Bundles.clone(template: template, bundle: place("vm"), os: .macos)
            }
            #expect(refused.code == .exists)
            #expect(refused.reason.contains(place("vm/" + name)))
            #expect(try place.read("vm/" + name) == "precious")
            #expect(try place.names(in: "vm") == [name])
        }

        @Test(arguments: ["Disk.img", "AuxiliaryStorage", "HardwareModel.json"])
        func a_template_without_a_file_is_refused_before_anything_is_made(name: String) async throws {
            let template = try place.template()
            try FileManager.default.removeItem(atPath: template + "/" + name)
            let refused = await failure {
                try Bundles.clone(template: template, bundle: place("vm"), os: .macos)
            }
            #expect(refused.code == .io)
            #expect(refused.reason.contains(template + "/" + name))
            #expect(try place.names() == ["template"])
        }

        @Test func a_hardware_model_this_host_cannot_run_is_refused_before_anything_is_made() async throws {
            let template = try place.template()
            let model = try TestDirectory.hardwareModel(minimum: 99).base64EncodedString()
            try place.write("{\"hardwareModel\":\"\(model)\"}", to: "template/HardwareModel.json")
            let refused = await failure {
                try Bundles.clone(template: template, bundle: place("vm"), os: .macos)
            }
            #expect(refused.code == .notSupported)
            #expect(try place.names() == ["template"])
        }

        @Test func another_volume_is_refused_with_both_paths() async throws {
            let template = try place.template()
            let elsewhere = "/dev/shm/vzcore-\(getpid()).bundle"
            let refused = await failure {
                try Bundles.clone(template: template, bundle: elsewhere, os: .macos)
            }
            #expect(refused.code == .differentVolume)
            #expect(refused.reason.hasPrefix("cloning \(template) to \(elsewhere): "))
            #expect(access(elsewhere, F_OK) != 0)
        }

        @Test func a_bundle_without_a_parent_directory_is_refused() async throws {
            let template = try place.template()
            let refused = await failure {
                try Bundles.clone(template: template, bundle: place("no/vm"), os: .macos)
            }
            #expect(refused.code == .io)
            #expect(refused.reason.contains(place("no")))
        }

        @Test func a_link_in_a_template_is_refused_and_not_followed() async throws {
            let template = try place.template()
            try FileManager.default.moveItem(atPath: template + "/Disk.img", toPath: place("elsewhere.img"))
            try #require(chmod(place("elsewhere.img"), 0o644) == 0)
            try #require(symlink(place("elsewhere.img"), template + "/Disk.img") == 0)
            let refused = await failure {
                try Bundles.clone(template: template, bundle: place("vm"), os: .macos)
            }
            #expect(refused.code == .invalidConfiguration)
            #expect(refused.reason.contains("\(template)/Disk.img is not a regular file"))
            #expect(try place.mode(of: "elsewhere.img") == 0o644)
            #expect(try place.names() == ["elsewhere.img", "template"])
        }

        @Test func a_failure_half_way_takes_away_what_it_made_and_nothing_else() async throws {
            let template = try place.template()
            // No file is that long: the clone is made and cannot be grown.
            let refused = await failure {
                try Bundles.clone(
                    template: template, bundle: place("new"), os: .macos, diskBytes: 1 << 63)
            }
            #expect(refused.code == .io)
            #expect(refused.reason.hasPrefix("cloning \(template) to \(place("new")): growing the disk"))
            #expect(try place.names() == ["template"])

            try FileManager.default.createDirectory(atPath: place("old"), withIntermediateDirectories: false)
            try place.write("mine", to: "old/note")
            _ = await failure {
                try Bundles.clone(
                    template: template, bundle: place("old"), os: .macos, diskBytes: 1 << 63)
            }
            #expect(try place.names(in: "old") == ["note"])
        }

        @Test func many_clones_to_one_place_leave_one_whole_vm() async throws {
            let template = try place.template()
            let results = await withTaskGroup(of: Result<Void, any Error>.self) { group in
                for _ in 0..<8 {
                    group.addTask {
                        Result { try Bundles.clone(template: template, bundle: self.place("vm"), os: .macos) }
                    }
                }
                return await group.reduce(into: []) { $0.append($1) }
            }
            let failures = results.compactMap {
                if case .failure(let error) = $0 { error as? VZFailure } else { nil }
            }
            #expect(failures.count == 7)
            for failure in failures { #expect(failure.code == .exists) }
            _ = try Configuration(.small(place("vm")))
        }
    }
}
