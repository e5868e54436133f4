"""Files of other programs: weights of Keras and safetensors."""
