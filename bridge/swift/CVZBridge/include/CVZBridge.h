/* swift-bridge's headers have no include guards and lean on each other: once, in this order. */
#ifndef CVZBRIDGE_H
#define CVZBRIDGE_H
#include "SwiftBridgeCore.h"
#include "vz_bridge.h"
#endif
