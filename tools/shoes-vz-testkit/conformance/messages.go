package main

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// myshoes' messages, stated here a second time on purpose: a mistake in proto/myshoes cannot hide behind itself.
const (
	addInstance    = "/whywaita.myshoes.Shoes/AddInstance"
	deleteInstance = "/whywaita.myshoes.Shoes/DeleteInstance"
)

// The ladder, by myshoes' text; the number is the index.
var resourceTypes = []string{"unknown", "nano", "micro", "small", "medium", "large", "xlarge", "2xlarge", "3xlarge", "4xlarge"}

type field struct {
	name   string
	number int32
	kind   descriptorpb.FieldDescriptorProto_Type
	label  descriptorpb.FieldDescriptorProto_Label
}

const (
	text     = descriptorpb.FieldDescriptorProto_TYPE_STRING
	enum     = descriptorpb.FieldDescriptorProto_TYPE_ENUM
	one      = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
	repeated = descriptorpb.FieldDescriptorProto_LABEL_REPEATED
)

func message(name string, fields ...field) *descriptorpb.DescriptorProto {
	m := &descriptorpb.DescriptorProto{Name: proto.String(name)}
	for _, f := range fields {
		d := &descriptorpb.FieldDescriptorProto{
			Name:   proto.String(f.name),
			Number: proto.Int32(f.number),
			Type:   f.kind.Enum(),
			Label:  f.label.Enum(),
		}
		if f.kind == enum {
			d.TypeName = proto.String(".whywaita.myshoes.ResourceType")
		}
		m.Field = append(m.Field, d)
	}
	return m
}

// schema builds the descriptors of myshoes' protocol.
func schema() (protoreflect.FileDescriptor, error) {
	ladder := &descriptorpb.EnumDescriptorProto{Name: proto.String("ResourceType")}
	for number, name := range resourceTypes {
		ladder.Value = append(ladder.Value, &descriptorpb.EnumValueDescriptorProto{
			Name:   proto.String("T_" + name),
			Number: proto.Int32(int32(number)),
		})
	}
	return protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name:     proto.String("conformance.proto"),
		Package:  proto.String("whywaita.myshoes"),
		Syntax:   proto.String("proto3"),
		EnumType: []*descriptorpb.EnumDescriptorProto{ladder},
		MessageType: []*descriptorpb.DescriptorProto{
			message("AddInstanceRequest",
				field{"runner_name", 1, text, one}, field{"setup_script", 2, text, one},
				field{"resource_type", 3, enum, one}, field{"labels", 4, text, repeated}),
			message("AddInstanceResponse",
				field{"cloud_id", 1, text, one}, field{"shoes_type", 2, text, one},
				field{"ip_address", 3, text, one}, field{"resource_type", 4, enum, one}),
			message("DeleteInstanceRequest", field{"cloud_id", 1, text, one}, field{"labels", 2, text, repeated}),
			message("DeleteInstanceResponse"),
		},
	}, nil)
}

type values map[string]any

// newMessage makes a message with the given fields set: strings, string lists, and resource types as numbers.
func newMessage(file protoreflect.FileDescriptor, name string, set values) *dynamicpb.Message {
	m := dynamicpb.NewMessage(file.Messages().ByName(protoreflect.Name(name)))
	for key, value := range set {
		f := m.Descriptor().Fields().ByName(protoreflect.Name(key))
		switch v := value.(type) {
		case string:
			m.Set(f, protoreflect.ValueOfString(v))
		case []string:
			list := m.Mutable(f).List()
			for _, item := range v {
				list.Append(protoreflect.ValueOfString(item))
			}
		case int32:
			m.Set(f, protoreflect.ValueOfEnum(protoreflect.EnumNumber(v)))
		}
	}
	return m
}

func textOf(m *dynamicpb.Message, name string) string {
	return m.Get(m.Descriptor().Fields().ByName(protoreflect.Name(name))).String()
}

func resourceTypeOf(m *dynamicpb.Message) string {
	number := int(m.Get(m.Descriptor().Fields().ByName("resource_type")).Enum())
	if number < 0 || number >= len(resourceTypes) {
		return "out of range"
	}
	return resourceTypes[number]
}
