// Says whether the denoiser computes on this board what it should, and how long a hop takes.
#include <model_info.h>

static uint32_t memory[(MODEL_MEMORY_BYTES + 3) / 4];
static int16_t block[MODEL_HOP];

void setup()
{
    Serial.begin(115200);
    Serial.println(model_selftest(memory, sizeof memory) == 0 ? "self-test: ok" : "self-test: FAILED");
}

void loop()
{
    // in your own sketch: fill the block from the microphone, and give it away afterwards
    const unsigned long before = micros();
    rnnc_denoiser_process(&model_denoiser, memory, block, block, MODEL_HOP);
    Serial.println(micros() - before);
    delay(1000);
}
