"""What a spiking network does and how far it is from its source: any network, no boxes."""
